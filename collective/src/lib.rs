//! Collectives: allreduce and its kin over shared memory and TCP
