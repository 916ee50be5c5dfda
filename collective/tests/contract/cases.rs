//! Every operation, type and size against a reference that folds as the documentation says.

use half::{bf16, f16};
use phalanx_collective::{Communicator, Config, DType, Number, Op, ReduceOp, Transport, shard_range};
use proptest::prelude::*;

use super::groups::{TRANSPORTS, in_processes, in_threads, said, say};

/// One operation of all ranks.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    op: Op,
    dtype: DType,
    reduce: ReduceOp,
    len: usize,
    root: usize,
    /// Ranks whose buffer lies in the arena, as bits.
    arena: u8,
    seed: u64,
}

/// Lengths around the borders between the ways an operation can go.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0usize..40,
        3 => prop_oneof![Just(512usize), Just(1024), Just(2048)].prop_flat_map(|n| n - 2..n + 3),
        2 => 2000usize..40_000,
        2 => 60_000usize..200_000,
    ]
}

pub(crate) fn cases() -> impl Strategy<Value = Case> {
    let ops = prop_oneof![
        4 => Just(Op::Allreduce),
        2 => Just(Op::ReduceScatter),
        2 => Just(Op::Allgather),
        2 => Just(Op::Broadcast),
        1 => Just(Op::Barrier),
        1 => Just(Op::Send),
    ];
    let dtypes = prop_oneof![3 => Just(DType::F32), 1 => Just(DType::F64), 1 => Just(DType::BF16), 1 => Just(DType::F16), 1 => Just(DType::I64)];
    let reduces =
        prop_oneof![Just(ReduceOp::Sum), Just(ReduceOp::Mean), Just(ReduceOp::Min), Just(ReduceOp::Max)];
    let arena = prop_oneof![Just(0u8), Just(0xff), any::<u8>()];
    (ops, dtypes, reduces, lengths(), 0usize..8, arena, any::<u64>()).prop_map(
        |(op, dtype, reduce, len, root, arena, seed)| Case { op, dtype, reduce, len, root, arena, seed },
    )
}

/// A number type of the contract: how values are made, and folded as the documentation says.
trait Value: Number + PartialEq + std::fmt::Debug {
    fn make(bits: u64) -> Self;
    fn fold(values: &[Self], op: ReduceOp) -> Self;
    fn bits(self) -> u64;
}

fn tree<A: Copy>(values: &[A], join: &impl Fn(A, A) -> A) -> A {
    if values.len() == 1 {
        return values[0];
    }
    let mut left = 1;
    while left * 2 < values.len() {
        left *= 2;
    }
    join(tree(&values[..left], join), tree(&values[left..], join))
}

macro_rules! float_value {
    ($ty:ty, $acc:ty, $to:expr, $from:expr) => {
        impl Value for $ty {
            fn make(bits: u64) -> Self {
                let from: fn($acc) -> $ty = $from;
                from(((bits >> 40) as i32 - (1 << 23)) as $acc / 1024.0)
            }
            fn fold(values: &[Self], op: ReduceOp) -> Self {
                let (to, from): (fn($ty) -> $acc, fn($acc) -> $ty) = ($to, $from);
                let values: Vec<$acc> = values.iter().map(|v| to(*v)).collect();
                from(match op {
                    ReduceOp::Sum => tree(&values, &|a, b| a + b),
                    ReduceOp::Mean => tree(&values, &|a, b| a + b) / values.len() as $acc,
                    ReduceOp::Min => tree(&values, &<$acc>::min),
                    ReduceOp::Max => tree(&values, &<$acc>::max),
                })
            }
            fn bits(self) -> u64 {
                self.to_bits().into()
            }
        }
    };
}

float_value!(f32, f32, |v| v, |v| v);
float_value!(f64, f64, |v| v, |v| v);
float_value!(bf16, f32, bf16::to_f32, bf16::from_f32);
float_value!(f16, f32, f16::to_f32, f16::from_f32);

impl Value for i64 {
    fn make(bits: u64) -> Self {
        bits as i64
    }
    fn fold(values: &[Self], op: ReduceOp) -> Self {
        let sum = values.iter().fold(0i64, |a, b| a.wrapping_add(*b));
        match op {
            ReduceOp::Sum => sum,
            ReduceOp::Mean => sum / values.len() as i64,
            ReduceOp::Min => *values.iter().min().unwrap(),
            ReduceOp::Max => *values.iter().max().unwrap(),
        }
    }
    fn bits(self) -> u64 {
        self as u64
    }
}

/// What `rank` holds at `i` before the operation.
fn input<T: Value>(case: &Case, rank: usize, i: usize) -> T {
    let mut x = case.seed
        ^ (rank as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (i as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    T::make(x ^ (x >> 31))
}

fn reduced<T: Value>(case: &Case, world: usize, i: usize) -> T {
    T::fold(&(0..world).map(|rank| input::<T>(case, rank, i)).collect::<Vec<_>>(), case.reduce)
}

/// Runs the case on this rank and checks every element.
fn run_as<T: Value>(comm: &mut Communicator, case: &Case) {
    let (world, rank, len) = (comm.world(), comm.rank(), case.len);
    if comm.transport() == Transport::Nccl {
        return run_on_device::<T>(comm, case);
    }
    let mut arena;
    let mut heap;
    let data: &mut [T] = if case.arena >> (rank % 8) & 1 == 1 {
        arena = comm.arena_alloc::<T>(len).unwrap();
        &mut arena
    } else {
        heap = vec![T::make(0); len];
        &mut heap
    };
    for (i, value) in data.iter_mut().enumerate() {
        *value = input(case, rank, i);
    }
    match case.op {
        Op::Allreduce => comm.allreduce(data, case.reduce).unwrap(),
        Op::ReduceScatter => {
            let range = comm.reduce_scatter(data, case.reduce).unwrap();
            assert_eq!(range, shard_range(len, world, rank));
        }
        Op::Allgather => comm.allgather(data).unwrap(),
        Op::Broadcast => comm.broadcast(data, case.root % world).unwrap(),
        Op::Barrier => comm.barrier().unwrap(),
        // Around the ring from the root, so that no two wait for one another.
        Op::Send | Op::Recv => {
            let root = case.root % world;
            let (next, before) = ((rank + 1) % world, (rank + world - 1) % world);
            if rank == root {
                comm.send(data, next).unwrap();
                comm.recv(data, before).unwrap();
            } else {
                comm.recv(data, before).unwrap();
                comm.send(data, next).unwrap();
            }
        }
    }
    check(case, (rank, world), data);
}

/// The same on device memory.
fn run_on_device<T: Value>(comm: &mut Communicator, case: &Case) {
    let (world, rank, len) = (comm.world(), comm.rank(), case.len);
    let mut data: Vec<T> = (0..len).map(|i| input(case, rank, i)).collect();
    let mut device = comm.on_device().unwrap();
    let mut buffer = device.alloc::<T>(len).unwrap();
    buffer.upload(&data).unwrap();
    let root = case.root % world;
    match case.op {
        Op::Allreduce => device.allreduce(&mut buffer, case.reduce).unwrap(),
        Op::ReduceScatter => {
            let range = device.reduce_scatter(&mut buffer, case.reduce).unwrap();
            assert_eq!(range, shard_range(len, world, rank));
        }
        Op::Allgather => device.allgather(&mut buffer).unwrap(),
        Op::Broadcast => device.broadcast(&mut buffer, root).unwrap(),
        Op::Barrier => comm.barrier().unwrap(),
        Op::Send | Op::Recv => {
            let (next, before) = ((rank + 1) % world, (rank + world - 1) % world);
            if rank == root {
                device.send(&mut buffer, next).unwrap();
                device.recv(&mut buffer, before).unwrap();
            } else {
                device.recv(&mut buffer, before).unwrap();
                device.send(&mut buffer, next).unwrap();
            }
        }
    }
    buffer.download(&mut data).unwrap();
    check(case, (rank, world), &data);
}

/// Compares every element that the operation promises something of.
fn check<T: Value>(case: &Case, (rank, world): (usize, usize), data: &[T]) {
    let (len, root) = (case.len, case.root % world);
    let check = |range: std::ops::Range<usize>, wanted: &dyn Fn(usize) -> T| {
        for i in range {
            assert_eq!(data[i].bits(), wanted(i).bits(), "rank {rank} element {i} of {case:?}");
        }
    };
    match case.op {
        Op::Allreduce => check(0..len, &|i| reduced(case, world, i)),
        Op::ReduceScatter => check(shard_range(len, world, rank), &|i| reduced(case, world, i)),
        Op::Allgather => {
            (0..world).for_each(|peer| check(shard_range(len, world, peer), &|i| input(case, peer, i)));
        }
        Op::Broadcast | Op::Send | Op::Recv => check(0..len, &|i| input(case, root, i)),
        Op::Barrier => {}
    }
}

pub(crate) fn run(comm: &mut Communicator, case: &Case) {
    match case.dtype {
        DType::F32 => run_as::<f32>(comm, case),
        DType::F64 => run_as::<f64>(comm, case),
        DType::BF16 => run_as::<bf16>(comm, case),
        DType::F16 => run_as::<f16>(comm, case),
        DType::I64 | DType::U8 => run_as::<i64>(comm, case),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    /// A sequence of operations, so that what one leaves behind meets the next.
    #[test]
    fn any_sequence_of_operations_gives_what_the_reference_gives(
        world in 2usize..6, sequence in proptest::collection::vec(cases(), 1..14)
    ) {
        for transport in TRANSPORTS {
            in_threads(world, transport, |comm| sequence.iter().for_each(|case| run(comm, case)));
        }
    }
}

/// A fixed sequence that goes every way, for processes.
pub(crate) fn fixed_cases() -> Vec<Case> {
    let ops = [Op::Allreduce, Op::ReduceScatter, Op::Allgather, Op::Broadcast, Op::Send, Op::Barrier];
    let dtypes = [DType::F32, DType::F64, DType::BF16, DType::F16, DType::I64];
    let reduces = [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Min, ReduceOp::Max];
    let lens = [0, 1, 7, 256, 1024, 1500, 70_001, 300_000, 400_001];
    let mut all = Vec::new();
    for (n, len) in lens.into_iter().enumerate() {
        for (m, op) in ops.into_iter().enumerate() {
            for arena in [0, 0xff, 0b101] {
                let k = n * 7 + m * 3 + arena as usize;
                let (dtype, reduce) = (dtypes[k % 5], reduces[k % 4]);
                all.push(Case { op, dtype, reduce, len, root: k, arena, seed: k as u64 });
            }
        }
    }
    all
}

pub(crate) fn play(scenario: &str, config: Config) {
    let mut comm = Communicator::connect(config).unwrap();
    if scenario == "cases-over-hosts" {
        assert_eq!(comm.transport(), Transport::Hosts);
        say("hosts");
    }
    fixed_cases().iter().for_each(|case| run(&mut comm, case));
    say("done");
}

#[test]
fn processes_compute_what_the_reference_gives() {
    for transport in TRANSPORTS {
        for world in [2, 3, 4] {
            for output in in_processes("cases", world, transport) {
                assert_eq!(said(&output), ["done"], "{transport:?} {world} {output:?}");
            }
        }
    }
}

#[test]
fn started_operations_run_in_order_beside_blocking_ones() {
    for transport in TRANSPORTS {
        in_threads(3, transport, |comm| {
            let mut buffers = Vec::new();
            for n in 0..4u32 {
                let mut buffer = comm.arena_alloc::<f32>(10_000).unwrap();
                buffer.fill((comm.rank() as u32 + n) as f32);
                buffers.push(buffer);
            }
            let pending: Vec<_> =
                buffers.into_iter().map(|b| comm.start_allreduce(b, ReduceOp::Sum).unwrap()).collect();
            let mut small = [comm.rank() as f32];
            comm.allreduce(&mut small, ReduceOp::Max).unwrap();
            assert_eq!(small, [2.0]);
            for (n, pending) in pending.into_iter().enumerate() {
                let buffer = pending.wait().unwrap();
                assert!(buffer.iter().all(|&v| v == (3 + 3 * n) as f32));
            }
        });
    }
}

#[test]
fn every_operation_can_be_started_and_waited_for() {
    for transport in TRANSPORTS {
        in_threads(4, transport, |comm| {
            let (rank, len) = (comm.rank(), 20_002);
            let mut buffer = comm.arena_alloc::<f64>(len).unwrap();
            buffer.fill(rank as f64);
            let buffer = comm.start_allreduce(buffer, ReduceOp::Max).unwrap().wait().unwrap();
            assert!(buffer.iter().all(|&v| v == 3.0));
            let mut buffer = comm.start_reduce_scatter(buffer, ReduceOp::Mean).unwrap().wait().unwrap();
            let own = comm.shard(len);
            assert!(buffer[own.clone()].iter().all(|&v| v == 3.0));
            buffer[own].fill(rank as f64);
            let buffer = comm.start_allgather(buffer).unwrap().wait().unwrap();
            assert!((0..4).all(|peer| buffer[shard_range(len, 4, peer)].iter().all(|&v| v == peer as f64)));
            let mut broadcast = comm.start_broadcast(buffer, 2).unwrap();
            let barrier = comm.start_barrier().unwrap();
            while !broadcast.is_done() {
                std::thread::yield_now();
            }
            let buffer = broadcast.wait().unwrap();
            assert!(barrier.wait().unwrap().is_empty());
            let buffer = match rank {
                0 => comm.start_send(buffer, 3).unwrap().wait().unwrap(),
                3 => comm.start_recv(buffer, 0).unwrap().wait().unwrap(),
                _ => buffer,
            };
            assert_eq!(buffer.len(), len);
            assert!(comm.start_broadcast(buffer, 4).is_err());
        });
    }
}

#[test]
fn the_flight_recorder_names_what_was_called() {
    for transport in TRANSPORTS {
        let logs = in_threads(2, transport, |comm| {
            comm.allreduce(&mut [1.0f32; 3], ReduceOp::Mean).unwrap();
            comm.barrier().unwrap();
            comm.flight_record()
        });
        for (rank, log) in logs.into_iter().enumerate() {
            let own = log.iter().find(|r| r.rank == rank).unwrap();
            let calls: Vec<String> = own.ops.iter().map(|op| op.call.to_string()).collect();
            assert_eq!(calls, ["allreduce mean of 3 x f32", "barrier"]);
            assert!(own.ops.iter().all(|op| op.ended_ns >= op.started_ns));
        }
    }
}
