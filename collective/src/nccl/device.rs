//! The device of a rank: its context, its memory, a stream. Through cudarc, which loads the driver's library at run time; as
//! it panics where there is none, everything begins with [`Device::open`], which looks first.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{DriverError, result, sys};

use crate::element::Element;
use crate::error::{Error, Result};

fn cuda(what: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| {
        // Without a text where the driver has no name for it.
        let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
        let text = text.unwrap_or_else(|| format!("{:?}", error.0));
        Error::Cuda { what, text }
    }
}

/// Number of GPUs that this process sees.
///
/// # Errors
/// [`Error::NoDevice`] without a driver, [`Error::Cuda`].
pub fn device_count() -> Result<usize> {
    // SAFETY: loading runs the constructors of the vendor's own library, as every CUDA program does.
    if !unsafe { sys::is_culib_present() } {
        let what = "no libcuda.so.1; it comes with the NVIDIA driver, and into a container with `--gpus all`";
        return Err(Error::NoDevice { what: what.to_owned() });
    }
    result::init().map_err(|error| Error::NoDevice {
        what: format!("the CUDA driver does not start: {}; see `phalanx doctor`", cuda("")(error)),
    })?;
    result::device::get_count().map(|count| count as usize).map_err(cuda("counting GPUs"))
}

/// A GPU's primary context, which frameworks in this process share.
#[derive(Debug)]
pub(crate) struct Device {
    handle: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: a context may be current in any number of threads.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    pub(crate) fn open(ordinal: usize) -> Result<Arc<Device>> {
        let count = device_count()?;
        if ordinal >= count {
            let what = format!(
                "there is no GPU {ordinal} among the {count} that this process sees; see CUDA_VISIBLE_DEVICES, or use fewer ranks"
            );
            return Err(Error::NoDevice { what });
        }
        let handle = result::device::get(ordinal as i32).map_err(cuda("opening a GPU"))?;
        // SAFETY: a device of this process; released once, on drop.
        let context =
            unsafe { result::primary_ctx::retain(handle) }.map_err(cuda("taking a GPU's context"))?;
        let device = Arc::new(Device { handle, context });
        device.enter()?;
        Ok(device)
    }

    /// Makes it the current device of this thread.
    pub(crate) fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained.
        unsafe { result::ctx::set_current(self.context) }.map_err(cuda("entering a GPU's context"))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: retained in `open`; what was made in it holds an `Arc` of this.
        let _ = unsafe { result::primary_ctx::release(self.handle) }; // at exit the driver may be gone already
    }
}

/// Memory of a rank's GPU: `len` elements, zeroed at first. Made by [`OnDevice::alloc`](crate::OnDevice::alloc).
#[derive(Debug)]
pub struct DeviceBuffer<T: Element> {
    device: Arc<Device>,
    address: sys::CUdeviceptr,
    len: usize,
    /// Of a framework's, not ours to free.
    borrowed: bool,
    elements: PhantomData<T>,
}

impl<T: Element> DeviceBuffer<T> {
    pub(crate) fn new(device: Arc<Device>, len: usize) -> Result<Self> {
        device.enter()?;
        let bytes =
            len.checked_mul(size_of::<T>()).filter(|&bytes| bytes <= isize::MAX as usize).ok_or_else(
                || Error::invalid(format!("a buffer of {len} elements is larger than memory; ask for less")),
            )?;
        // The driver has no empty memory.
        // SAFETY: a number; the memory is ours.
        let address =
            unsafe { result::malloc_sync(bytes.max(1)) }.map_err(cuda("allocating device memory"))?;
        let buffer = DeviceBuffer { device, address, len, borrowed: false, elements: PhantomData };
        // SAFETY: just allocated, with as many bytes.
        unsafe { result::memset_d8_sync(address, 0, bytes) }.map_err(cuda("zeroing device memory"))?;
        Ok(buffer)
    }

    /// # Safety
    /// As [`OnDevice::borrow`](crate::OnDevice::borrow).
    pub(crate) unsafe fn borrow(device: Arc<Device>, address: u64, len: usize) -> Self {
        DeviceBuffer { device, address, len, borrowed: true, elements: PhantomData }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it is, for kernels.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Copies `data`, which is as long, to the device.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another length, [`Error::Cuda`].
    pub fn upload(&mut self, data: &[T]) -> Result<()> {
        self.check(data.len())?;
        // SAFETY: as long as the memory; synchronous.
        unsafe { result::memcpy_htod_sync(self.address, data) }.map_err(cuda("copying to the device"))
    }

    /// Copies it into `data`, which is as long.
    ///
    /// # Errors
    /// As [`Self::upload`].
    pub fn download(&self, data: &mut [T]) -> Result<()> {
        self.check(data.len())?;
        // SAFETY: as above; every bit pattern is a value of an element.
        unsafe { result::memcpy_dtoh_sync(data, self.address) }.map_err(cuda("copying from the device"))
    }

    fn check(&self, len: usize) -> Result<()> {
        if len != self.len {
            return Err(Error::invalid(format!("{len} elements for a device buffer of {}", self.len)));
        }
        self.device.enter()
    }
}

impl<T: Element> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if !self.borrowed && self.device.enter().is_ok() {
            // SAFETY: allocated in `new`, and freed once; operations on it own or borrow it until they have ended.
            let freed = unsafe { result::free_sync(self.address) };
            if let Err(error) = freed.map_err(cuda("freeing device memory")) {
                tracing::warn!(%error, "device memory is lost");
            }
        }
    }
}

/// Memory that a framework of this process has on a GPU, and the stream whose work fills it: what
/// [`OnDevice::lend`](crate::OnDevice::lend) takes.
#[derive(Debug)]
pub struct DeviceMemory<T: Element> {
    address: u64,
    len: usize,
    stream: *mut std::ffi::c_void,
    elements: PhantomData<T>,
}

impl<T: Element> DeviceMemory<T> {
    /// `len` elements at `address`, as the work in `stream` (a `CUstream` or `cudaStream_t`) leaves them.
    ///
    /// # Safety
    /// They are on the GPU of the rank that lends them, and `stream` is a live stream of it. Until this and what becomes of
    /// it are dropped nobody frees them, and nobody touches them during an operation.
    pub unsafe fn new(address: u64, len: usize, stream: *mut std::ffi::c_void) -> Self {
        DeviceMemory { address, len, stream, elements: PhantomData }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the elements from `at` on away; there are at least so many.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.len, "there are {} elements and none at {at}", self.len);
        let address = self.address + (at * size_of::<T>()) as u64;
        let len = self.len - at;
        self.len = at;
        DeviceMemory { address, len, stream: self.stream, elements: PhantomData }
    }

    pub(crate) fn stream(&self) -> *mut std::ffi::c_void {
        self.stream
    }

    /// As a buffer of this device.
    pub(crate) fn into_buffer(self, device: Arc<Device>) -> DeviceBuffer<T> {
        DeviceBuffer { device, address: self.address, len: self.len, borrowed: true, elements: PhantomData }
    }
}

/// A stream of our own.
pub(crate) struct Stream {
    device: Arc<Device>,
    raw: sys::CUstream,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for Stream {}

impl Stream {
    pub(crate) fn new(device: Arc<Device>) -> Result<Self> {
        device.enter()?;
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(cuda("making a stream"))?;
        Ok(Stream { device, raw })
    }

    pub(crate) fn raw(&self) -> *mut std::ffi::c_void {
        self.raw.cast()
    }

    /// Whether all that was put into it is done.
    pub(crate) fn is_done(&self) -> Result<bool> {
        // SAFETY: the stream is alive.
        match unsafe { sys::cuStreamQuery(self.raw) } {
            sys::CUresult::CUDA_SUCCESS => Ok(true),
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => Err(cuda("running an operation on the device")(DriverError(code))),
        }
    }

    /// What is put into it from here on waits for what is in `other` now.
    ///
    /// # Safety
    /// `other` is a live stream of the same device.
    pub(crate) unsafe fn wait_for(&self, other: *mut std::ffi::c_void) -> Result<()> {
        self.device.enter()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .map_err(cuda("making an event"))?;
        // SAFETY: all three are alive; destroying an event that is waited for is put off by the driver.
        unsafe {
            let waits = result::event::record(event, other.cast()).and_then(|()| {
                result::stream::wait_event(self.raw, event, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
            });
            let destroyed = result::event::destroy(event);
            waits.and(destroyed).map_err(cuda("waiting for a stream"))
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: made in `new`, destroyed once.
            let _ = unsafe { result::stream::destroy(self.raw) }; // at exit the driver may be gone already
        }
    }
}
