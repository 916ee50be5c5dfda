//! Buffers that peers can reach directly, and the allocator behind them.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use crate::element::Element;
use crate::error::{Error, Result};

/// Alignment of every buffer: two cache lines, which prefetchers take in pairs.
pub(crate) const BUFFER_ALIGN: usize = 128;

/// A buffer so large that looking up what memory is free costs nothing beside it.
const LARGE_BYTES: usize = 64 << 20;

/// Memory from which [`ArenaBuffer`]s are cut: a rank's part of the shared segment.
pub(crate) struct Arena {
    base: NonNull<u8>,
    /// Free pieces by offset, neighbours merged.
    free: Mutex<BTreeMap<usize, usize>>,
    _memory: Arc<dyn Any + Send + Sync>,
}

// SAFETY: `base` is only handed out in disjoint pieces, under the lock; the memory is kept alive.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// # Safety
    /// `base` is valid for reads and writes of `bytes` bytes as long as `memory` lives, is aligned to [`BUFFER_ALIGN`],
    /// holds zeros, and nobody else in this process hands pieces of it out.
    pub(crate) unsafe fn new(base: NonNull<u8>, bytes: usize, memory: Arc<dyn Any + Send + Sync>) -> Self {
        Arena { base, free: Mutex::new(BTreeMap::from([(0, bytes)])), _memory: memory }
    }

    /// First fit. The offset of a piece of `bytes` (a multiple of the alignment).
    fn take(&self, bytes: usize) -> Result<usize> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((&offset, &length)) = free.iter().find(|&(_, &length)| length >= bytes) else {
            let free_bytes = free.values().copied().max().unwrap_or(0);
            return Err(Error::ArenaFull { wanted_bytes: bytes, free_bytes });
        };
        free.remove(&offset);
        if length > bytes {
            free.insert(offset + bytes, length - bytes);
        }
        Ok(offset)
    }

    fn give_back(&self, offset: usize, bytes: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut offset, mut bytes) = (offset, bytes);
        if let Some((&before, &length)) = free.range(..offset).next_back()
            && before + length == offset
        {
            free.remove(&before);
            (offset, bytes) = (before, length + bytes);
        }
        if let Some(length) = free.remove(&(offset + bytes)) {
            bytes += length;
        }
        free.insert(offset, bytes);
    }
}

/// A buffer's memory, shared by the parts that it was split into; it goes back when the last of them does.
struct Memory {
    data: NonNull<u8>,
    owner: Owner,
}

// SAFETY: this only frees the memory, once, from whichever thread drops the last part.
unsafe impl Send for Memory {}
// SAFETY: as above; nothing is reached through a shared one.
unsafe impl Sync for Memory {}

/// Who gets it back.
enum Owner {
    Heap(Layout),
    Arena {
        arena: Arc<Arena>,
        offset: usize,
        bytes: usize,
    },
    /// An empty buffer has no memory.
    Nobody,
}

/// A buffer of `len` elements, zeroed at first, that the direct path can reduce without a copy.
///
/// It dereferences to a slice. It may outlive its communicator, and be [split](Self::split_off) into parts that are reduced
/// one by one.
pub struct ArenaBuffer<T: Element> {
    data: NonNull<T>,
    len: usize,
    memory: Arc<Memory>,
}

// SAFETY: the buffer owns its memory in this process; elements are plain data.
unsafe impl<T: Element> Send for ArenaBuffer<T> {}
// SAFETY: as above; shared access only reads.
unsafe impl<T: Element> Sync for ArenaBuffer<T> {}

impl<T: Element> ArenaBuffer<T> {
    fn whole(data: NonNull<T>, len: usize, owner: Owner) -> Self {
        ArenaBuffer { data, len, memory: Arc::new(Memory { data: data.cast(), owner }) }
    }

    /// Cuts the elements from `at` on off into a buffer of their own, without a copy.
    ///
    /// # Panics
    /// If `at` is beyond the end.
    #[must_use = "what is cut off is no longer in the buffer"]
    pub fn split_off(&mut self, at: usize) -> ArenaBuffer<T> {
        assert!(at <= self.len, "split at {at} of {} elements", self.len);
        // SAFETY: `at` is at most the length, so that the pointer stays within the memory or right behind it.
        let data = unsafe { self.data.add(at) };
        let rest = ArenaBuffer { data, len: self.len - at, memory: self.memory.clone() };
        self.len = at;
        rest
    }

    /// Puts a part that was [cut off](Self::split_off) right behind these elements back.
    ///
    /// # Panics
    /// If it is not that part.
    pub fn unsplit(&mut self, rest: ArenaBuffer<T>) {
        // SAFETY: the length is within the memory, as above.
        let end = unsafe { self.data.add(self.len) };
        assert!(
            Arc::ptr_eq(&self.memory, &rest.memory) && end == rest.data,
            "the part is not the one that was cut off here"
        );
        self.len += rest.len;
    }

    fn bytes_of(len: usize) -> Result<usize> {
        len.checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_next_multiple_of(BUFFER_ALIGN))
            .filter(|&bytes| bytes <= isize::MAX as usize)
            .ok_or_else(|| {
                Error::invalid(format!("a buffer of {len} elements is larger than memory; ask for less"))
            })
    }

    /// In this process's own memory, for transports that have no use for shared memory.
    pub(crate) fn on_heap(len: usize) -> Result<Self> {
        let bytes = Self::bytes_of(len)?;
        if bytes == 0 {
            return Ok(ArenaBuffer::whole(NonNull::dangling(), len, Owner::Nobody));
        }
        // The allocator promises more than there is, and the first touch would end the process.
        if bytes > LARGE_BYTES
            && let Some(free_bytes) = crate::memory::free()
            && bytes as u64 > free_bytes
        {
            let bytes = bytes as u64;
            return Err(Error::NoMemory { arena_bytes: bytes, ranks: 1, wanted_bytes: bytes, free_bytes });
        }
        let layout =
            Layout::from_size_align(bytes, BUFFER_ALIGN).map_err(|e| Error::invalid(e.to_string()))?;
        // SAFETY: the layout is not empty.
        let data = unsafe { alloc_zeroed(layout) };
        let what = || format!("allocating a buffer of {bytes} bytes");
        let data = NonNull::new(data.cast()).ok_or_else(|| Error::system(what(), "out of memory"))?;
        Ok(ArenaBuffer::whole(data, len, Owner::Heap(layout)))
    }

    pub(crate) fn in_arena(arena: &Arc<Arena>, len: usize) -> Result<Self> {
        let bytes = Self::bytes_of(len)?;
        if bytes == 0 {
            return Ok(ArenaBuffer::whole(NonNull::dangling(), len, Owner::Nobody));
        }
        let offset = arena.take(bytes)?;
        // SAFETY: the piece lies within the arena, is aligned, and is ours alone in this process until given back; every
        // bit pattern is a value of the plain types that are elements. It is zeroed since it may have been used before.
        let data = unsafe {
            let data = arena.base.add(offset);
            data.write_bytes(0, bytes);
            data.cast()
        };
        Ok(ArenaBuffer::whole(data, len, Owner::Arena { arena: arena.clone(), offset, bytes }))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match &self.owner {
            // SAFETY: allocated with this layout in `on_heap`.
            Owner::Heap(layout) => unsafe { dealloc(self.data.as_ptr(), *layout) },
            Owner::Arena { arena, offset, bytes } => arena.give_back(*offset, *bytes),
            Owner::Nobody => {}
        }
    }
}

impl<T: Element> Deref for ArenaBuffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised elements; peers write to them only while this process is in an operation on them.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T: Element> DerefMut for ArenaBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl<T: Element + fmt::Debug> fmt::Debug for ArenaBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(bytes: usize) -> Arc<Arena> {
        let memory = Arc::new(ArenaBuffer::<u8>::on_heap(bytes).unwrap());
        let base = memory.data;
        // SAFETY: the buffer has `bytes` zeroed bytes and lives in the arena from here on.
        Arc::new(unsafe { Arena::new(base, bytes, memory) })
    }

    #[test]
    fn pieces_are_disjoint_zeroed_and_merged_again() {
        let arena = arena(1024);
        let mut a = ArenaBuffer::<f32>::in_arena(&arena, 33).unwrap();
        let mut b = ArenaBuffer::<f64>::in_arena(&arena, 32).unwrap();
        a.fill(1.0);
        b.fill(2.0);
        assert!(a.iter().all(|&v| v == 1.0) && b.iter().all(|&v| v == 2.0));
        let e = ArenaBuffer::<u8>::in_arena(&arena, 640).unwrap_err();
        assert_eq!(e, Error::ArenaFull { wanted_bytes: 640, free_bytes: 512 });
        drop(a);
        drop(b);
        let whole = ArenaBuffer::<u8>::in_arena(&arena, 1024).unwrap();
        assert!(whole.iter().all(|&v| v == 0));
    }

    #[test]
    fn parts_are_the_same_memory_and_go_back_together() {
        let arena = arena(1024);
        let mut front = ArenaBuffer::<f32>::in_arena(&arena, 100).unwrap();
        front.iter_mut().enumerate().for_each(|(at, value)| *value = at as f32);
        let mut back = front.split_off(60);
        let middle = front.split_off(40);
        back.fill(7.0);
        assert_eq!((front.len(), middle[19], back.len()), (40, 59.0, 40));
        front.unsplit(middle);
        assert_eq!((front.len(), front[59]), (60, 59.0));
        drop(front);
        assert!(ArenaBuffer::<u8>::in_arena(&arena, 1024).is_err(), "a part still holds the memory");
        drop(back);
        assert!(ArenaBuffer::<u8>::in_arena(&arena, 1024).is_ok());
    }

    #[test]
    #[should_panic(expected = "not the one that was cut off here")]
    fn a_part_of_another_buffer_is_refused() {
        let (mut one, mut other) =
            (ArenaBuffer::<f32>::on_heap(8).unwrap(), ArenaBuffer::<f32>::on_heap(8).unwrap());
        let _own = one.split_off(4);
        one.unsplit(other.split_off(4));
    }

    #[test]
    fn an_absurd_length_is_an_error() {
        assert!(ArenaBuffer::<f64>::on_heap(usize::MAX / 4).is_err());
        assert!(ArenaBuffer::<f64>::on_heap(0).unwrap().is_empty());
        let error = ArenaBuffer::<u8>::on_heap(1 << 50).err().unwrap();
        assert!(matches!(error, Error::NoMemory { wanted_bytes, .. } if wanted_bytes == 1 << 50), "{error}");
    }
}
