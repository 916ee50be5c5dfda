//! NCCL's C interface, found at run time. Nothing links against it, every failure is an [`Error`], and what only newer
//! libraries have is optional.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// Where the library is, by soname: pip's wheel and every distribution have it under this name.
const SONAME: &str = "libnccl.so.2";
/// Said where there is none.
const ADVICE: &str = "install libnccl2, or put the folder of pip's nvidia-nccl on LD_LIBRARY_PATH";
/// `NCCL_UNIQUE_ID_BYTES` of nccl.h.
pub const UNIQUE_ID_BYTES: usize = 128;

/// `ncclUniqueId`: what the ranks of one communicator have in common.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId(pub [u8; UNIQUE_ID_BYTES]);

/// `ncclComm_t`.
pub(super) type RawComm = *mut c_void;
/// `cudaStream_t`, which is the driver's `CUstream`.
pub(super) type RawStream = *mut c_void;
/// `ncclResult_t`.
pub(super) type Code = c_int;

/// Done.
pub(super) const SUCCESS: Code = 0;
/// A non-blocking communicator is at work on it.
pub(super) const IN_PROGRESS: Code = 7;

/// The beginning of `ncclConfig_t`, as it has been since 2.14. The size and version say that no more follows; the library
/// takes its defaults for the rest.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

impl Config {
    /// Calls return at once, so that no peer can hang this process in one.
    pub(super) fn non_blocking() -> Self {
        Config { size: size_of::<Config>(), magic: 0xcafe_beef, version: 21_400, blocking: 0 }
    }
}

macro_rules! symbols {
    (required { $($field:ident: $symbol:literal ($($argument:ty),*);)* }
     optional { $($later:ident: $later_symbol:literal ($($later_argument:ty),*);)* }) => {
        /// The functions that are called. All answer an `ncclResult_t`.
        pub(super) struct Symbols {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> Code,)*
            $(pub(super) $later: Option<unsafe extern "C" fn($($later_argument),*) -> Code>,)*
        }

        impl Symbols {
            fn load(library: &libloading::Library) -> Result<Self> {
                // SAFETY: the signatures are those of nccl.h, which keeps them within a major version.
                unsafe {
                    Ok(Symbols {
                        $($field: *library.get(concat!($symbol, "\0").as_bytes()).map_err(|e| lacking($symbol, &e))?,)*
                        $($later: library.get(concat!($later_symbol, "\0").as_bytes()).ok().map(|found| *found),)*
                    })
                }
            }
        }
    };
}

symbols! {
    required {
        get_version: "ncclGetVersion" (*mut c_int);
        get_unique_id: "ncclGetUniqueId" (*mut UniqueId);
        comm_init_rank_config: "ncclCommInitRankConfig" (*mut RawComm, c_int, UniqueId, c_int, *mut Config);
        comm_get_async_error: "ncclCommGetAsyncError" (RawComm, *mut Code);
        comm_finalize: "ncclCommFinalize" (RawComm);
        comm_destroy: "ncclCommDestroy" (RawComm);
        comm_abort: "ncclCommAbort" (RawComm);
        all_reduce: "ncclAllReduce" (*const c_void, *mut c_void, usize, c_int, c_int, RawComm, RawStream);
        reduce: "ncclReduce" (*const c_void, *mut c_void, usize, c_int, c_int, c_int, RawComm, RawStream);
        reduce_scatter: "ncclReduceScatter" (*const c_void, *mut c_void, usize, c_int, c_int, RawComm, RawStream);
        all_gather: "ncclAllGather" (*const c_void, *mut c_void, usize, c_int, RawComm, RawStream);
        broadcast: "ncclBroadcast" (*const c_void, *mut c_void, usize, c_int, c_int, RawComm, RawStream);
        send: "ncclSend" (*const c_void, usize, c_int, c_int, RawComm, RawStream);
        recv: "ncclRecv" (*mut c_void, usize, c_int, c_int, RawComm, RawStream);
        group_start: "ncclGroupStart" ();
        group_end: "ncclGroupEnd" ();
    }
    optional {
        comm_split: "ncclCommSplit" (RawComm, c_int, c_int, *mut RawComm, *mut Config);
        comm_shrink: "ncclCommShrink" (RawComm, *mut c_int, c_int, *mut RawComm, *mut Config, c_int);
    }
}

fn lacking(symbol: &str, error: &libloading::Error) -> Error {
    Error::NoDevice { what: format!("NCCL has no {symbol} ({error}); 2.14 or newer is needed") }
}

/// An open NCCL.
pub struct Library {
    pub(super) symbols: Symbols,
    error_string: Option<unsafe extern "C" fn(Code) -> *const c_char>,
    last_error: Option<unsafe extern "C" fn(RawComm) -> *const c_char>,
    /// Keeps the code in place; never unloaded, as its threads may run for ever.
    _code: libloading::Library,
}

impl Library {
    /// Loads `libnccl.so.2`, once for the process.
    ///
    /// # Errors
    /// [`Error::NoDevice`] with what the loader said and what to do.
    pub fn load() -> Result<&'static Library> {
        static LIBRARY: OnceLock<Result<Library>> = OnceLock::new();
        LIBRARY.get_or_init(|| Library::open(SONAME)).as_ref().map_err(Clone::clone)
    }

    fn open(name: &str) -> Result<Library> {
        // SAFETY: loading runs the constructors of the vendor's own library, as every CUDA program does.
        let code = unsafe { libloading::Library::new(name) }.map_err(|error| {
            // libloading has the loader's own words as the source of its error.
            let source =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Error::NoDevice { what: format!("no NCCL: {source}; {ADVICE}") }
        })?;
        let symbols = Symbols::load(&code)?;
        // SAFETY: the signatures are those of nccl.h.
        let (error_string, last_error) = unsafe {
            let error_string = code.get(b"ncclGetErrorString\0").ok().map(|found| *found);
            (error_string, code.get(b"ncclGetLastError\0").ok().map(|found| *found))
        };
        Ok(Library { symbols, error_string, last_error, _code: code })
    }

    /// Its version, such as (2, 23, 4).
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub fn version(&self) -> Result<(i32, i32, i32)> {
        let mut version: c_int = 0;
        // SAFETY: the place is a live integer.
        self.check("ncclGetVersion", unsafe { (self.symbols.get_version)(&mut version) })?;
        // nccl.h: 10000 * major + 100 * minor + patch since 2.9; older ones are refused for their symbols.
        Ok((version / 10_000, version % 10_000 / 100, version % 100))
    }

    /// An id for a new communicator. It opens a listening socket: on a machine without a network, `NCCL_SOCKET_IFNAME=lo`
    /// says where.
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; UNIQUE_ID_BYTES]);
        // SAFETY: the place is as large as an id.
        self.check("ncclGetUniqueId", unsafe { (self.symbols.get_unique_id)(&mut id) })?;
        Ok(id)
    }

    /// Whether communicators can be split, and shrunk by those that died.
    pub fn can_split_and_shrink(&self) -> (bool, bool) {
        (self.symbols.comm_split.is_some(), self.symbols.comm_shrink.is_some())
    }

    /// An answer as a `Result`; being at work on it is none yet.
    pub(super) fn check(&self, call: &'static str, code: Code) -> Result<()> {
        match code {
            SUCCESS | IN_PROGRESS => Ok(()),
            code => Err(self.error(call, code)),
        }
    }

    pub(super) fn error(&self, call: &'static str, code: Code) -> Error {
        let text = |pointer: *const c_char| {
            // SAFETY: NCCL answers with zero-terminated texts that stay; a null pointer is none.
            (!pointer.is_null())
                .then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().trim().to_owned())
        };
        // SAFETY: takes a number.
        let what = self.error_string.and_then(|ask| text(unsafe { ask(code) }));
        // SAFETY: NCCL ignores the communicator and answers for this thread.
        let detail = self.last_error.and_then(|ask| text(unsafe { ask(std::ptr::null_mut()) }));
        let what = what.unwrap_or_else(|| "an error without a name".to_owned());
        let text = match detail.filter(|detail| !detail.is_empty()) {
            Some(detail) => format!("{what} ({detail})"),
            None => what,
        };
        Error::Nccl { call, code, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_library_or_symbol_is_an_error_that_says_what_to_do() {
        let error = Library::open("libphalanx-absent.so.2").err().unwrap().to_string();
        assert!(error.contains("libphalanx-absent.so.2") && error.contains("install libnccl2"), "{error}");
        let error = Library::open("libc.so.6").err().unwrap().to_string();
        assert!(error.contains("ncclGetVersion") && error.contains("2.14 or newer"), "{error}");
    }
}
