//! The memory that the ranks of a host share: one memfd, allocated once and prefaulted, never a named file.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

use super::word::Word;
use crate::error::{Error, Result};
use crate::recorder::Log;

/// Largest operation that goes through one slot and one barrier.
pub(crate) const SMALL_BYTES: usize = 4 << 10;
/// Slots for small operations: a rank is never more than one operation ahead of another.
pub(crate) const SMALL_SLOTS: usize = 2;
/// A piece of foreign memory on its way through.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
/// Between two barriers a rank folds one chunk, gathers the one before and fills the next: two slots race.
pub(crate) const CHUNK_SLOTS: usize = 3;
/// A piece of a message.
pub(crate) const MAIL_BYTES: usize = 64 << 10;
/// One is filled while the other is read.
pub(crate) const MAIL_SLOTS: usize = 2;

const PAGE: usize = 4096;

/// What the whole group shares.
#[repr(C, align(128))]
pub(crate) struct Header {
    /// A packed [`Cause`](crate::fault::Cause), 0 while all is well.
    pub(crate) poison: AtomicU64,
}

/// An operation as announced at its first barrier.
#[repr(C)]
pub(crate) struct Announced {
    pub(crate) code: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// Offset of the buffer in the rank's arena, or [`FOREIGN`].
    pub(crate) place: AtomicU64,
}

/// The buffer is not in the arena.
pub(crate) const FOREIGN: u64 = u64::MAX;

/// What a rank tells the others at barriers. Nobody else writes here, but for the poison.
#[repr(C, align(128))]
pub(crate) struct Flag {
    /// Barriers it has come to.
    pub(crate) arrived: Word,
    /// By parity of the sequence number.
    pub(crate) announced: [Announced; 2],
}

/// A rank's outgoing message.
#[repr(C, align(128))]
pub(crate) struct Mail {
    /// Pieces written.
    pub(crate) sent: Word,
    /// Pieces read by the receivers.
    pub(crate) taken: Word,
    pub(crate) to: AtomicU32,
    /// Whether the rank has left: 0 or 1.
    pub(crate) left: AtomicU32,
    /// What is sent …
    pub(crate) code: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// … and what this rank, as a receiver, found not to fit it.
    pub(crate) wanted_code: AtomicU64,
    pub(crate) wanted_bytes: AtomicU64,
}

/// Where things lie in the segment; the same for every rank.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) world: usize,
    pub(crate) arena_bytes: usize,
    logs: usize,
    small: usize,
    chunks: usize,
    mail: usize,
    arenas: usize,
    total: usize,
}

impl Layout {
    pub(crate) fn new(world: usize, arena_bytes: usize) -> Result<Self> {
        let too_large =
            || Error::invalid(format!("an arena of {arena_bytes} bytes a rank is too large; ask for less"));
        let arena_bytes = arena_bytes.checked_next_multiple_of(PAGE).ok_or_else(too_large)?;
        let mut at = size_of::<Header>() + world * (size_of::<Flag>() + size_of::<Mail>());
        let mut place = |bytes: usize| -> Option<usize> {
            let start = at.checked_next_multiple_of(PAGE)?;
            at = start.checked_add(world.checked_mul(bytes)?)?;
            Some(start)
        };
        let mut parts = || {
            let logs = place(size_of::<Log>())?;
            let small = place(SMALL_BYTES * SMALL_SLOTS)?;
            let chunks = place(CHUNK_BYTES * CHUNK_SLOTS)?;
            let mail = place(MAIL_BYTES * MAIL_SLOTS)?;
            let arenas = place(arena_bytes)?;
            Some([logs, small, chunks, mail, arenas])
        };
        let [logs, small, chunks, mail, arenas] = parts().ok_or_else(too_large)?;
        let total =
            at.checked_next_multiple_of(PAGE).filter(|&t| t <= isize::MAX as usize).ok_or_else(too_large)?;
        Ok(Layout { world, arena_bytes, logs, small, chunks, mail, arenas, total })
    }

    /// All of it.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.total as u64
    }
}

/// The mapping.
pub(crate) struct Segment {
    base: NonNull<u8>,
    pub(crate) layout: Layout,
}

// SAFETY: the control structures are atomics; the data areas are handed out as raw pointers only.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Makes the memory, all zero. The descriptor goes to the other ranks and is closed then.
    pub(crate) fn create(layout: Layout) -> Result<(Self, OwnedFd)> {
        let failed = |what: &str, e: nix::Error| {
            Error::system(
                format!("{what} {} bytes of shared memory for {} ranks", layout.total, layout.world),
                e,
            )
        };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"phalanx-collective", flags).map_err(|e| failed("making", e))?;
        nix::unistd::ftruncate(&fd, layout.total as i64).map_err(|e| failed("sizing", e))?;
        // What nobody owns; the rest is each rank's to claim.
        allocate(&fd, 0, layout.logs).map_err(|e| failed("allocating", e))?;
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(|e| failed("sealing", e))?;
        Ok((Self::map(&fd, layout)?, fd))
    }

    /// Maps the memory. Each rank [claims](Self::claim) its part; only then may it be touched.
    pub(crate) fn map(fd: &OwnedFd, layout: Layout) -> Result<Self> {
        let failed = |e| Error::system(format!("mapping {} bytes of shared memory", layout.total), e);
        let stat = nix::sys::stat::fstat(fd).map_err(failed)?;
        if stat.st_size as usize != layout.total {
            let what = format!("shared memory of {} bytes, {} expected", stat.st_size, layout.total);
            return Err(Error::Corrupt { rank: 0, what });
        }
        let length =
            std::num::NonZeroUsize::new(layout.total).ok_or_else(|| Error::invalid("nothing to map"))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping of a descriptor whose size is sealed; it overlaps nothing.
        let base = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, fd.as_fd(), 0) }
            .map_err(failed)?
            .cast();
        Ok(Segment { base, layout })
    }

    /// Allocates what is `rank`'s in the memory, so that it counts as this process's. Now, because a first touch later costs
    /// as much as a dozen allreduces, and a lack of memory would be a SIGBUS.
    pub(crate) fn claim(&self, rank: usize, fd: &OwnedFd) -> Result<()> {
        let l = &self.layout;
        let parts = [
            (l.logs, size_of::<Log>()),
            (l.small, SMALL_BYTES * SMALL_SLOTS),
            (l.chunks, CHUNK_BYTES * CHUNK_SLOTS),
            (l.mail, MAIL_BYTES * MAIL_SLOTS),
            (l.arenas, l.arena_bytes),
        ];
        for (area, bytes) in parts.into_iter().filter(|(_, bytes)| *bytes > 0) {
            allocate(fd, area + rank * bytes, bytes).map_err(|e| {
                Error::system(format!("allocating shared memory with an arena of {} bytes", l.arena_bytes), e)
            })?;
        }
        Ok(())
    }

    /// Enters every page in this process's page tables, once all have claimed theirs.
    pub(crate) fn prefault(&self) {
        // SAFETY: the range is ours; the advice keeps contents.
        let done = unsafe { madvise(self.base.cast(), self.layout.total, MmapAdvise::MADV_POPULATE_WRITE) };
        if done.is_ok() {
            return;
        }
        // Before Linux 5.14: one read a page.
        for offset in (0..self.layout.total).step_by(PAGE) {
            // SAFETY: within the mapping; any byte is a value.
            unsafe { self.base.add(offset).read_volatile() };
        }
    }

    pub(crate) fn header(&self) -> &Header {
        // SAFETY: the header lies at the start, page-aligned, and zero is a value of its atomics.
        unsafe { self.base.cast().as_ref() }
    }

    #[inline]
    pub(crate) fn flag(&self, rank: usize) -> &Flag {
        debug_assert!(rank < self.layout.world);
        let offset = size_of::<Header>() + rank * size_of::<Flag>();
        // SAFETY: as laid out; sizes are multiples of the alignment, zero is a value.
        unsafe { self.base.add(offset).cast().as_ref() }
    }

    pub(crate) fn mail(&self, rank: usize) -> &Mail {
        debug_assert!(rank < self.layout.world);
        let offset = size_of::<Header>() + self.layout.world * size_of::<Flag>() + rank * size_of::<Mail>();
        // SAFETY: as above.
        unsafe { self.base.add(offset).cast().as_ref() }
    }

    pub(crate) fn log(&self, rank: usize) -> NonNull<Log> {
        self.at(self.layout.logs, rank, size_of::<Log>()).cast()
    }

    /// Slot for a small operation.
    #[inline]
    pub(crate) fn small(&self, rank: usize, seq: u64) -> NonNull<u8> {
        self.at(self.layout.small, rank * SMALL_SLOTS + seq as usize % SMALL_SLOTS, SMALL_BYTES)
    }

    pub(crate) fn chunk(&self, rank: usize, number: u64) -> NonNull<u8> {
        let slot = (number % CHUNK_SLOTS as u64) as usize;
        self.at(self.layout.chunks, rank * CHUNK_SLOTS + slot, CHUNK_BYTES)
    }

    pub(crate) fn mail_slot(&self, rank: usize, number: u32) -> NonNull<u8> {
        self.at(self.layout.mail, rank * MAIL_SLOTS + number as usize % MAIL_SLOTS, MAIL_BYTES)
    }

    pub(crate) fn arena(&self, rank: usize) -> NonNull<u8> {
        self.at(self.layout.arenas, rank, self.layout.arena_bytes)
    }

    #[inline]
    fn at(&self, area: usize, index: usize, bytes: usize) -> NonNull<u8> {
        debug_assert!(area + (index + 1) * bytes <= self.layout.total);
        // SAFETY: within the mapping, as laid out.
        unsafe { self.base.add(area + index * bytes) }
    }
}

fn allocate(fd: &OwnedFd, from: usize, bytes: usize) -> nix::Result<()> {
    fallocate(fd, FallocateFlags::empty(), from as i64, bytes as i64)
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`; whatever points into it holds an `Arc` of this.
        if let Err(error) = unsafe { munmap(self.base.cast(), self.layout.total) } {
            tracing::error!(%error, "shared memory could not be unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_disjoint_and_the_memory_is_zero() {
        let (segment, fd) = Segment::create(Layout::new(3, 10_000).unwrap()).unwrap();
        let blocks = || nix::sys::stat::fstat(&fd).unwrap().st_blocks;
        let before = blocks();
        (0..3).for_each(|rank| segment.claim(rank, &fd).unwrap());
        // Every page is there now, and touching them makes no more.
        assert!(blocks() > before && blocks() as u64 * 512 >= segment.layout.total_bytes());
        segment.prefault();
        let mut areas: Vec<(usize, usize)> = Vec::new();
        let mut add = |p: NonNull<u8>, bytes: usize| areas.push((p.as_ptr() as usize, bytes));
        for rank in 0..3 {
            add(NonNull::from(segment.flag(rank)).cast(), size_of::<Flag>());
            add(NonNull::from(segment.mail(rank)).cast(), size_of::<Mail>());
            add(segment.log(rank).cast(), size_of::<Log>());
            (0..2).for_each(|s| add(segment.small(rank, s), SMALL_BYTES));
            (0..3).for_each(|s| add(segment.chunk(rank, s), CHUNK_BYTES));
            (0..2).for_each(|s| add(segment.mail_slot(rank, s), MAIL_BYTES));
            add(segment.arena(rank), 12_288);
        }
        areas.sort_unstable();
        assert!(areas.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        let base = segment.base.as_ptr() as usize;
        assert!(areas.first().unwrap().0 >= base + size_of::<Header>());
        assert!(areas.last().map(|(p, n)| p + n).unwrap() <= base + segment.layout.total);
        assert_eq!(segment.mail(2).bytes.load(std::sync::atomic::Ordering::SeqCst), 0);
        // Nobody can cut it from under a reader.
        assert!(nix::unistd::ftruncate(&fd, 0).is_err());
        assert!(Segment::map(&fd, Layout::new(2, 10_000).unwrap()).is_err());
    }

    #[test]
    fn an_absurd_arena_is_an_error() {
        assert!(matches!(Layout::new(2, usize::MAX), Err(Error::Invalid { .. })));
        assert!(matches!(Layout::new(2, usize::MAX / 2), Err(Error::Invalid { .. })));
    }
}
