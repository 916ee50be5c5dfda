//! The order in which foreign memory goes through chunks. The transport follows it, and a model in the tests runs it
//! through every interleaving of the ranks.

/// One step of one rank. Chunks are counted from the start of the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Our pieces into our chunk.
    Fill(usize),
    /// Wait for all.
    Barrier,
    /// Our stripe of everybody's chunk into our buffer and, to be gathered, into our chunk.
    Fold(usize),
    /// Everybody's own stripe of their chunk into our buffer.
    Gather(usize),
}

/// The steps of an operation of `count` chunks. Between two barriers a rank folds one chunk, gathers the one before and
/// fills the next.
pub(super) fn steps(count: usize, folds: bool, gathers: bool) -> impl Iterator<Item = Step> {
    let last = folds && gathers; // results are gathered one barrier after they are folded
    let each = (0..count).flat_map(move |k| {
        let fold = folds.then_some(Step::Fold(k));
        let gather = match folds {
            true if gathers => k.checked_sub(1).map(Step::Gather),
            true => None,
            false => gathers.then_some(Step::Gather(k)),
        };
        [Some(Step::Fill(k)), Some(Step::Barrier), fold, gather].into_iter().flatten()
    });
    let end =
        if last && count > 0 { [Some(Step::Barrier), Some(Step::Gather(count - 1))] } else { [None, None] };
    each.chain(end.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::segment::CHUNK_SLOTS;
    use std::collections::HashSet;

    /// What lies in a stripe of a chunk: which chunk of the whole sequence, and whether it is folded.
    type Content = (u8, bool);

    /// A rank's program, its chunks counted through all operations, and every barrier split in coming and waiting.
    #[derive(Clone, Copy, Debug)]
    enum Action {
        Fill(u8, bool),
        Arrive,
        Wait,
        Fold(u8, bool),
        Gather(u8),
    }

    fn program(operations: &[(usize, bool, bool)]) -> Vec<Action> {
        let mut all = Vec::new();
        let mut before = 0;
        for &(count, folds, gathers) in operations {
            all.extend([Action::Arrive, Action::Wait]); // the barrier that opens every operation
            for step in steps(count, folds, gathers) {
                let number = |k: usize| (before + k) as u8;
                match step {
                    Step::Fill(k) => all.push(Action::Fill(number(k), folds)),
                    Step::Barrier => all.extend([Action::Arrive, Action::Wait]),
                    Step::Fold(k) => all.push(Action::Fold(number(k), gathers)),
                    Step::Gather(k) => all.push(Action::Gather(number(k))),
                }
            }
            before += count;
        }
        all
    }

    #[derive(Clone, PartialEq, Eq, Hash)]
    struct State {
        /// Next action of each rank, and barriers it has come to.
        at: Vec<u8>,
        arrived: Vec<u8>,
        /// By rank, slot and stripe.
        chunks: Vec<Vec<Vec<Content>>>,
    }

    impl State {
        /// `rank` takes its next step, if it can. An `Err` is data lost.
        fn step(&self, rank: usize, program: &[Action], slots: usize) -> Result<Option<State>, String> {
            let world = self.at.len();
            let mut next = self.clone();
            let slot = |k: u8| k as usize % slots;
            let wanted = |got: Content, want: Content| {
                if got == want {
                    Ok(())
                } else {
                    Err(format!("rank {rank} wanted {want:?} and read {got:?}"))
                }
            };
            match program[self.at[rank] as usize] {
                Action::Fill(k, all) => {
                    for stripe in (0..world).filter(|&s| all || s == rank) {
                        next.chunks[rank][slot(k)][stripe] = (k, !all);
                    }
                }
                Action::Arrive => next.arrived[rank] += 1,
                Action::Wait if self.arrived.iter().any(|&a| a < self.arrived[rank]) => return Ok(None),
                Action::Wait => {}
                Action::Fold(k, publish) => {
                    for peer in 0..world {
                        wanted(self.chunks[peer][slot(k)][rank], (k, false))?;
                    }
                    if publish {
                        next.chunks[rank][slot(k)][rank] = (k, true);
                    }
                }
                Action::Gather(k) => {
                    for peer in (0..world).filter(|&p| p != rank) {
                        wanted(self.chunks[peer][slot(k)][peer], (k, true))?;
                    }
                }
            }
            next.at[rank] += 1;
            Ok(Some(next))
        }
    }

    /// Every interleaving of the ranks; how many states there are, or what goes wrong in one.
    fn explore(world: usize, operations: &[(usize, bool, bool)], slots: usize) -> Result<usize, String> {
        let program = program(operations);
        let start = State {
            at: vec![0; world],
            arrived: vec![0; world],
            chunks: vec![vec![vec![(u8::MAX, false); world]; slots]; world],
        };
        let mut seen = HashSet::from([start.clone()]);
        let mut open = vec![start];
        while let Some(state) = open.pop() {
            let mut stuck = true;
            for rank in 0..world {
                if state.at[rank] as usize == program.len() {
                    continue;
                }
                if let Some(next) = state.step(rank, &program, slots)? {
                    stuck = false;
                    if seen.insert(next.clone()) {
                        open.push(next);
                    }
                }
            }
            let done = state.at.iter().all(|&at| at as usize == program.len());
            if stuck && !done {
                return Err("nobody can go on".into());
            }
        }
        Ok(seen.len())
    }

    const ALLREDUCE: (bool, bool) = (true, true);
    const REDUCE_SCATTER: (bool, bool) = (true, false);
    const ALLGATHER: (bool, bool) = (false, true);

    #[test]
    fn three_slots_lose_nothing_in_any_interleaving() {
        let kinds = [ALLREDUCE, REDUCE_SCATTER, ALLGATHER];
        for first in kinds {
            for second in kinds {
                for count in 1..4 {
                    let operations =
                        [(count, first.0, first.1), (3, second.0, second.1), (2, first.0, first.1)];
                    explore(2, &operations, CHUNK_SLOTS).unwrap();
                    explore(3, &operations[..2], CHUNK_SLOTS).unwrap();
                }
            }
        }
    }

    #[test]
    fn two_slots_race() {
        let error = explore(2, &[(4, true, true)], CHUNK_SLOTS - 1).unwrap_err();
        assert!(error.contains("wanted"), "{error}");
    }
}
