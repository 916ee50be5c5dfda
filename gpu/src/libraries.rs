//! The libraries that training on GPUs needs, probed by loading them and asking for their version, nothing more.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::path::{Path, PathBuf};

use libloading::{Library, Symbol};

/// A C function that stores a version and returns 0 on success.
type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;

/// The version of NCCL, such as `2.23.4`, or why there is none.
///
/// # Errors
/// The loader's message, or what the library answered, with what to do.
pub fn nccl() -> Result<String, String> {
    let version = version_of(Path::new("libnccl.so.2"), b"ncclGetVersion\0").map_err(|why| {
        format!("{why}; install libnccl2, or put the folder of pip's nvidia-nccl on LD_LIBRARY_PATH")
    })?;
    Ok(nccl_version(version))
}

/// The version of CUDA that the driver takes, such as `12.4`, or why there is none.
///
/// # Errors
/// The loader's message, or what the library answered, with what to do.
pub fn cuda_driver() -> Result<String, String> {
    let version = version_of(Path::new("libcuda.so.1"), b"cuDriverGetVersion\0")
        .map_err(|why| format!("{why}; it comes with the NVIDIA driver"))?;
    // cuda.h: 1000 * major + 10 * minor.
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

/// The file of the libtorch that this process has loaded; none in a build that is without.
#[must_use]
pub fn libtorch() -> Option<PathBuf> {
    mapped(&std::fs::read_to_string("/proc/self/maps").ok()?, "libtorch_cpu.so")
}

/// The mapped file of this name in the text of `/proc/PID/maps`.
fn mapped(maps: &str, name: &str) -> Option<PathBuf> {
    let files = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    files.filter(|file| file.file_name().is_some_and(|found| found == name)).map(Path::to_owned).next()
}

/// Loads the part of libtorch that computes on GPUs, for as long as the process lives. Nothing of a program refers to it, so
/// that the linker leaves it out, and without it libtorch sees no GPU.
///
/// # Errors
/// The loader's message, with what to do.
pub fn load_libtorch_cuda() -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: loading runs the library's constructors, which register its kernels with the libtorch that the process has
    // already loaded.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|error| {
        format!("{}; put the folder of a libtorch with CUDA on LD_LIBRARY_PATH", loader_says(error))
    })?;
    std::mem::forget(library);
    Ok(())
}

/// nccl.h: `10000 * major + 100 * minor + patch` since 2.9, with 1000 in place of 10000 before.
fn nccl_version(version: c_int) -> String {
    let major = if version >= 10_000 { 10_000 } else { 1000 };
    format!("{}.{}.{}", version / major, version % major / 100, version % 100)
}

fn version_of(library: &Path, symbol: &[u8]) -> Result<c_int, String> {
    // SAFETY: loading runs the library's constructors; these are the vendor's own libraries by their soname, which every
    // CUDA program on the machine loads the same way.
    let library = unsafe { Library::new(library) }.map_err(loader_says)?;
    // SAFETY: both functions that are asked for have this signature in their public headers.
    let get: Symbol<'_, GetVersion> = unsafe { library.get(symbol) }.map_err(loader_says)?;
    let mut version: c_int = 0;
    // SAFETY: the pointer is to a live integer, which is all the function writes.
    match unsafe { get(&mut version) } {
        0 => Ok(version),
        code => {
            Err(format!("{} answered error {code}", String::from_utf8_lossy(&symbol[..symbol.len() - 1])))
        }
    }
}

/// The loader's own message: libloading has it as the source of its error.
fn loader_says(error: libloading::Error) -> String {
    std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_their_headers_say() {
        assert_eq!(nccl_version(22_304), "2.23.4");
        assert_eq!(nccl_version(2708), "2.7.8");
    }

    #[test]
    fn a_mapped_file_is_found_by_its_name() {
        let maps = "7f0-7f1 r-xp 00000000 08:01 12  /opt/py torch/lib/libtorch_cpu.so\n7f2-7f3 rw-p 00000000 00:00 0\n";
        assert_eq!(mapped(maps, "libtorch_cpu.so").unwrap(), Path::new("/opt/py torch/lib/libtorch_cpu.so"));
        assert_eq!(mapped(maps, "torch_cpu.so"), None);
        assert_eq!(libtorch(), None, "this crate has no libtorch");
    }

    #[test]
    fn an_absent_library_or_symbol_is_a_value() {
        let error = version_of(Path::new("libphalanx-absent.so.1"), b"f\0").unwrap_err();
        assert!(error.contains("libphalanx-absent.so.1"), "{error}");
        let error = version_of(Path::new("libc.so.6"), b"phalanx_absent\0").unwrap_err();
        assert!(error.contains("phalanx_absent"), "{error}");
    }
}
