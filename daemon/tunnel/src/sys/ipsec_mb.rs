//! ChaCha20-Poly1305 by Intel's Multi-Buffer Crypto library, where the machine has it and AVX-512.
//!
//! It is opened at run time, so that the program needs neither it nor such a processor. What is mirrored here of its
//! `intel-ipsec-mb.h` are the fields in use, and these have the same places in the headers of 1.3, 1.4 and 1.5; a test
//! compares them with the header that is installed. Other versions are not used.
//!
//! **Whose code it is.** The library is found by its name alone, in the system's folders: neither the working directory nor a
//! folder of ours is searched. `LD_LIBRARY_PATH` is, unless the program has more rights than who starts it (file
//! capabilities, set-user-ID: AT_SECURE), when ld.so ignores it; who may set it otherwise could as well set `LD_PRELOAD`, or
//! trace the process. So it is trusted as libc is, which is found in the same way.
//!
//! **Threads and processes.** A manager serves one thread at a time, so each thread has its own, made when it first seals or
//! opens, and freed when it ends: 200 KB, 0.2 ms. It is memory and nothing else: no thread, no descriptor. A process that was
//! forked has a copy that is as good.
//!
//! **Registers.** Each call ends with `vzeroupper` and, as Debian builds it (`SAFE_DATA`), with the others cleared, so that
//! SSE code that follows is not slowed down; a test looks. What a call leaves on the stack is the keystream of one packet and
//! its Poly1305 key, never the key. The kernel keeps the large registers where it interrupts a thread, and signals find
//! their frame's size in AT_MINSIGSTKSZ, as Rust's own handlers do; no handler here computes anything.
#![expect(unsafe_code, reason = "a C library, opened at run time, that is told where packets lie")]

use std::cell::OnceCell;
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::{NonNull, null, null_mut};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

const LIBRARY: &str = "libIPSec_MB.so.1";

/// `IMB_VERSION_NUM` without its last byte, of the releases whose layout is known: 1.3 to 1.5.
const KNOWN: std::ops::RangeInclusive<c_uint> = 0x0103..=0x0105;

/// `IMB_ARCH_AVX512`.
const AVX512: u32 = 5;
/// `IMB_CPUFLAGS_AVX512_T2`: what its fastest code needs. All else that it has is slower than `ring` is.
const AVX512_TYPE_2: u64 = 0x73fff;

const CIPHER_CHACHA20_POLY1305: c_int = 19;
const AUTH_CHACHA20_POLY1305: c_int = 29;
const STATUS_COMPLETED: c_int = 3;

/// `IMB_CIPHER_DIRECTION`, whose numbers are those of the `IMB_CHAIN_ORDER` that goes with it: encrypt then hash, hash then
/// decrypt.
#[derive(Clone, Copy)]
enum Direction {
    Encrypt = 1,
    Decrypt = 2,
}

/// The beginning of `IMB_JOB`.
#[repr(C)]
struct Job {
    enc_keys: *const c_void,
    dec_keys: *const c_void,
    key_len: u64,
    src: *const u8,
    dst: *mut u8,
    cipher_offset: u64,
    cipher_len: u64,
    hash_offset: u64,
    hash_len: u64,
    iv: *const u8,
    iv_len: u64,
    tag: *mut u8,
    tag_len: u64,
    /// `u.CHACHA20_POLY1305`.
    aad: *const c_void,
    aad_len: u64,
    context: *mut c_void,
    status: c_int,
    cipher_mode: c_int,
    direction: c_int,
    hash_alg: c_int,
    chain_order: c_int,
}

type JobCall = unsafe extern "C" fn(*mut Head) -> *mut Job;

/// The beginning of `IMB_MGR`.
#[repr(C)]
struct Head {
    flags: u64,
    features: u64,
    reserved: [u64; 5],
    used_arch: u32,
    errno: c_int,
    get_next_job: Option<JobCall>,
    submit_job: Option<JobCall>,
    submit_job_nocheck: Option<JobCall>,
}

/// Why the library is not used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unusable {
    /// Its code for this processor is slower than `ring`, or there is none.
    #[error("the processor has not all of AVX-512 that {LIBRARY} needs")]
    Processor,
    /// Not installed, most of the time.
    #[error("{0}")]
    Missing(String),
    /// Another release.
    #[error("{LIBRARY} is of version {}.{}, of which nothing is known here", .0 >> 16, (.0 >> 8) & 0xff)]
    Version(c_uint),
    /// No memory, or it failed its own tests.
    #[error("{LIBRARY} does not initialise: error {0}")]
    Initialisation(c_int),
    /// It computes something else.
    #[error("{LIBRARY} and ring do not agree about {0}")]
    Wrong(String),
}

/// The library, opened and known. It is never closed.
#[derive(Clone, Copy)]
pub struct IpsecMb(&'static Functions);

struct Functions {
    allocate: unsafe extern "C" fn(u64) -> *mut Head,
    initialise: unsafe extern "C" fn(*mut Head, *mut c_int),
    free: unsafe extern "C" fn(*mut Head),
}

impl IpsecMb {
    /// The library, if it can be used on this machine. Opened once.
    ///
    /// # Errors
    /// See [`Unusable`].
    pub fn get() -> Result<Self, Unusable> {
        static FUNCTIONS: OnceLock<Result<Functions, Unusable>> = OnceLock::new();
        match FUNCTIONS.get_or_init(Functions::open) {
            Ok(functions) => Ok(Self(functions)),
            Err(error) => Err(error.clone()),
        }
    }

    /// Encrypts in place; the tag.
    pub fn seal(self, key: &[u8; 32], nonce: &[u8; 12], text: &mut [u8]) -> [u8; 16] {
        self.run(Direction::Encrypt, key, nonce, text)
    }

    /// Decrypts in place, whatever it is; the tag that it should have.
    pub fn open(self, key: &[u8; 32], nonce: &[u8; 12], text: &mut [u8]) -> [u8; 16] {
        self.run(Direction::Decrypt, key, nonce, text)
    }

    fn run(self, direction: Direction, key: &[u8; 32], nonce: &[u8; 12], text: &mut [u8]) -> [u8; 16] {
        thread_local!(static MANAGER: OnceCell<Manager> = const { OnceCell::new() });
        MANAGER.with(|manager| {
            let new = || Manager::new(self.0).expect("another of its managers was initialised already");
            manager.get_or_init(new).run(direction, key, nonce, text)
        })
    }
}

impl Functions {
    fn open() -> Result<Self, Unusable> {
        if !processor_fits() {
            return Err(Unusable::Processor);
        }
        let missing = |error: libloading::Error| Unusable::Missing(error.to_string());
        // SAFETY: what the library runs when it is opened is the C compiler's; the module's text says whose code it is.
        let library = unsafe { Library::open(Some(LIBRARY), RTLD_NOW | RTLD_LOCAL) }.map_err(missing)?;
        // SAFETY: this is how every release declares it.
        let version = unsafe { library.get::<unsafe extern "C" fn() -> c_uint>(c"imb_get_version") };
        // SAFETY: it takes and touches nothing.
        let version = unsafe { version.map_err(missing)?() };
        if !KNOWN.contains(&(version >> 8)) {
            return Err(Unusable::Version(version));
        }
        // SAFETY: these are declared like this in all the releases that are known. The pointers stay valid, since the library
        // is never closed.
        let functions = unsafe {
            Self {
                allocate: *library.get(c"alloc_mb_mgr").map_err(missing)?,
                initialise: *library.get(c"init_mb_mgr_auto").map_err(missing)?,
                free: *library.get(c"free_mb_mgr").map_err(missing)?,
            }
        };
        std::mem::forget(library);
        // Whether it would choose the code that is wanted is seen by one manager.
        Manager::new(&functions)?;
        Ok(functions)
    }
}

/// Before a large library is mapped to no avail. What it takes itself is seen afterwards.
fn processor_fits() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512ifma");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// `IMB_MGR`, of one thread; the pointer keeps it from being sent to another.
struct Manager {
    head: NonNull<Head>,
    next: JobCall,
    submit: JobCall,
    free: unsafe extern "C" fn(*mut Head),
}

impl Manager {
    fn new(functions: &Functions) -> Result<Self, Unusable> {
        // SAFETY: no flags; what it returns is checked.
        let head = NonNull::new(unsafe { (functions.allocate)(0) });
        let head = head.ok_or(Unusable::Initialisation(libc::ENOMEM))?;
        // SAFETY: it was allocated for this; the architecture may be null.
        unsafe { (functions.initialise)(head.as_ptr(), null_mut()) };
        // SAFETY: `Head` is how it begins, and nobody else has it.
        let Head { features, used_arch, errno, get_next_job, submit_job_nocheck, .. } =
            *unsafe { head.as_ref() };
        let usable = match (get_next_job, submit_job_nocheck) {
            _ if errno != 0 => Err(Unusable::Initialisation(errno)),
            (Some(next), Some(submit))
                if used_arch == AVX512 && features & AVX512_TYPE_2 == AVX512_TYPE_2 =>
            {
                Ok((next, submit))
            }
            _ => Err(Unusable::Processor),
        };
        match usable {
            Ok((next, submit)) => Ok(Self { head, next, submit, free: functions.free }),
            Err(error) => {
                // SAFETY: it was allocated above and is used no more.
                unsafe { (functions.free)(head.as_ptr()) };
                Err(error)
            }
        }
    }

    fn run(&self, direction: Direction, key: &[u8; 32], nonce: &[u8; 12], text: &mut [u8]) -> [u8; 16] {
        let (key, len, mut tag) = (key.as_ptr().cast(), text.len() as u64, [0; 16]);
        let job = Job {
            enc_keys: key,
            dec_keys: key,
            key_len: 32,
            src: text.as_ptr(),
            dst: text.as_mut_ptr(),
            cipher_offset: 0,
            cipher_len: len,
            hash_offset: 0,
            hash_len: len,
            iv: nonce.as_ptr(),
            iv_len: nonce.len() as u64,
            tag: tag.as_mut_ptr(),
            tag_len: tag.len() as u64,
            aad: null(),
            aad_len: 0,
            context: null_mut(),
            status: 0,
            cipher_mode: CIPHER_CHACHA20_POLY1305,
            direction: direction as c_int,
            hash_alg: AUTH_CHACHA20_POLY1305,
            chain_order: direction as c_int,
        };
        // SAFETY: the manager is this thread's, and has no job that is not completed. The next job is memory of the manager's
        // that begins as `Job` does. This cipher is computed while it is submitted, by AVX-512, which the manager was
        // initialised for, and touches nothing but what the job points to: that is borrowed until then.
        let status = unsafe {
            let next = (self.next)(self.head.as_ptr());
            next.write(job);
            (self.submit)(self.head.as_ptr()).as_ref().map(|done| done.status)
        };
        // A library that does otherwise may write into packets at any time.
        assert_eq!(status, Some(STATUS_COMPLETED), "{LIBRARY} has not done its job");
        tag
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // SAFETY: it was allocated for this manager, and is used no more.
        unsafe { (self.free)(self.head.as_ptr()) };
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
#[path = "ipsec_mb_tests.rs"]
mod tests;
