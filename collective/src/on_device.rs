//! The public operations on device memory.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use crate::backend::{Call, Place};
use crate::communicator::Communicator;
use crate::element::{Element, Number, ReduceOp};
use crate::error::{Error, Op, Result};
use crate::nccl::{DeviceBuffer, DeviceMemory};
use crate::queue::Pending;

/// The operations of a [`Communicator`] on memory of its rank's GPU, through NCCL.
///
/// They are the same as on the host and count with them: all ranks call the same operations in the same order, blocking or
/// [started](Self::start_allreduce). NCCL sums in an order of its own, equal on all ranks but not the tree of the other
/// transports; and it compares nothing, so that ranks that call different operations wait until the deadline.
pub struct OnDevice<'a> {
    comm: &'a mut Communicator,
    device: Arc<crate::nccl::Device>,
}

impl Communicator {
    /// The way to operations on device memory.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the group did not meet with
    /// [`TransportChoice::Nccl`](crate::TransportChoice::Nccl).
    pub fn on_device(&mut self) -> Result<OnDevice<'_>> {
        let device = self.device().ok_or_else(|| {
            Error::invalid("this group has no GPUs; connect with the transport nccl on every rank")
        })?;
        Ok(OnDevice { comm: self, device })
    }
}

impl OnDevice<'_> {
    /// Memory of this rank's GPU, zeroed.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn alloc<T: Element>(&self, len: usize) -> Result<DeviceBuffer<T>> {
        DeviceBuffer::new(self.device.clone(), len)
    }

    /// Memory that a framework of this process has allocated, as a buffer.
    ///
    /// # Safety
    /// `address` is of this rank's GPU and holds `len` elements of this type, which nobody frees while the buffer lives, and
    /// nobody touches during an operation on it.
    pub unsafe fn borrow<T: Element>(&self, address: u64, len: usize) -> DeviceBuffer<T> {
        // SAFETY: passed on.
        unsafe { DeviceBuffer::borrow(self.device.clone(), address, len) }
    }

    /// Operations from here on wait for what is in a framework's stream (a `CUstream` or `cudaStream_t`) now.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    ///
    /// # Safety
    /// `stream` is a live stream of this rank's GPU.
    pub unsafe fn wait_for_stream(&mut self, stream: *mut std::ffi::c_void) -> Result<()> {
        let engine = self.comm.engine()?;
        let engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: passed on.
        unsafe { engine.nccl().map_or(Ok(()), |nccl| nccl.stream.wait_for(stream)) }
    }

    /// A framework's memory as a buffer, on which operations wait for what is in the framework's stream now.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn lend<T: Element>(&mut self, memory: DeviceMemory<T>) -> Result<DeviceBuffer<T>> {
        // SAFETY: alive, by the contract of `DeviceMemory::new`.
        unsafe { self.wait_for_stream(memory.stream())? };
        Ok(memory.into_buffer(self.device.clone()))
    }

    /// As [`Communicator::allreduce`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn allreduce<T: Number>(&mut self, data: &mut DeviceBuffer<T>, op: ReduceOp) -> Result<()> {
        self.run(Op::Allreduce, Some(op), 0, data)
    }

    /// As [`Communicator::reduce_scatter`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter<T: Number>(
        &mut self,
        data: &mut DeviceBuffer<T>,
        op: ReduceOp,
    ) -> Result<Range<usize>> {
        self.run(Op::ReduceScatter, Some(op), 0, data)?;
        Ok(self.comm.shard(data.len()))
    }

    /// As [`Communicator::allgather`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn allgather<T: Element>(&mut self, data: &mut DeviceBuffer<T>) -> Result<()> {
        self.run(Op::Allgather, None, 0, data)
    }

    /// As [`Communicator::broadcast`].
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Invalid`] if there is no such rank.
    pub fn broadcast<T: Element>(&mut self, data: &mut DeviceBuffer<T>, root: usize) -> Result<()> {
        self.comm.check_root(root)?;
        self.run(Op::Broadcast, None, root, data)
    }

    /// As [`Communicator::send`].
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Invalid`] if `to` is this rank or none.
    pub fn send<T: Element>(&mut self, data: &mut DeviceBuffer<T>, to: usize) -> Result<()> {
        self.comm.check_partner(to)?;
        self.run(Op::Send, None, to, data)
    }

    /// As [`Communicator::recv`].
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Invalid`] if `from` is this rank or none.
    pub fn recv<T: Element>(&mut self, data: &mut DeviceBuffer<T>, from: usize) -> Result<()> {
        self.comm.check_partner(from)?;
        self.run(Op::Recv, None, from, data)
    }

    /// As [`Communicator::start_allreduce`]: the operation runs beside what the caller does next.
    ///
    /// # Errors
    /// [`Error::System`] if the communication thread cannot be started.
    pub fn start_allreduce<T: Number>(
        &mut self,
        data: DeviceBuffer<T>,
        op: ReduceOp,
    ) -> Result<Pending<T, DeviceBuffer<T>>> {
        let world = self.comm.world();
        self.comm.start_with(data, move |data| call_of(Op::Allreduce, Some(op), (0, world), data))
    }

    fn run<T: Element>(
        &mut self,
        op: Op,
        reduce: Option<ReduceOp>,
        peer: usize,
        data: &mut DeviceBuffer<T>,
    ) -> Result<()> {
        let call = call_of(op, reduce, (peer, self.comm.world()), data);
        // SAFETY: the buffer is borrowed exclusively until this returns.
        unsafe { self.comm.run_call(&call) }
    }
}

fn call_of<T: Element>(
    op: Op,
    reduce: Option<ReduceOp>,
    (peer, world): (usize, usize),
    data: &mut DeviceBuffer<T>,
) -> Call {
    let address = std::ptr::with_exposed_provenance_mut(data.address() as usize);
    Call {
        op,
        dtype: T::DTYPE,
        reduce,
        peer,
        parts: world,
        len: data.len(),
        data: address,
        place: Place::Device,
    }
}
