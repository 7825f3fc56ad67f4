//! What is believed of the library's header, and of its code. Where the machine lacks the package that is a failure; only a
//! processor without AVX-512 is a reason to leave something out, and is told.

use std::mem::offset_of;
use std::process::Command;

use super::*;

/// Compares with the C compiler's idea of the installed header, whatever the processor.
#[test]
fn the_header_says_the_same() {
    let ours = [
        ("offsetof(IMB_JOB, enc_keys)", offset_of!(Job, enc_keys)),
        ("offsetof(IMB_JOB, dec_keys)", offset_of!(Job, dec_keys)),
        ("offsetof(IMB_JOB, key_len_in_bytes)", offset_of!(Job, key_len)),
        ("offsetof(IMB_JOB, src)", offset_of!(Job, src)),
        ("offsetof(IMB_JOB, dst)", offset_of!(Job, dst)),
        ("offsetof(IMB_JOB, cipher_start_src_offset_in_bytes)", offset_of!(Job, cipher_offset)),
        ("offsetof(IMB_JOB, msg_len_to_cipher_in_bytes)", offset_of!(Job, cipher_len)),
        ("offsetof(IMB_JOB, hash_start_src_offset_in_bytes)", offset_of!(Job, hash_offset)),
        ("offsetof(IMB_JOB, msg_len_to_hash_in_bytes)", offset_of!(Job, hash_len)),
        ("offsetof(IMB_JOB, iv)", offset_of!(Job, iv)),
        ("offsetof(IMB_JOB, iv_len_in_bytes)", offset_of!(Job, iv_len)),
        ("offsetof(IMB_JOB, auth_tag_output)", offset_of!(Job, tag)),
        ("offsetof(IMB_JOB, auth_tag_output_len_in_bytes)", offset_of!(Job, tag_len)),
        ("offsetof(IMB_JOB, u.CHACHA20_POLY1305.aad)", offset_of!(Job, aad)),
        ("offsetof(IMB_JOB, u.CHACHA20_POLY1305.aad_len_in_bytes)", offset_of!(Job, aad_len)),
        ("offsetof(IMB_JOB, u.CHACHA20_POLY1305.ctx)", offset_of!(Job, context)),
        ("offsetof(IMB_JOB, status)", offset_of!(Job, status)),
        ("offsetof(IMB_JOB, cipher_mode)", offset_of!(Job, cipher_mode)),
        ("offsetof(IMB_JOB, cipher_direction)", offset_of!(Job, direction)),
        ("offsetof(IMB_JOB, hash_alg)", offset_of!(Job, hash_alg)),
        ("offsetof(IMB_JOB, chain_order)", offset_of!(Job, chain_order)),
        // All that is written, with the padding at its end, is before the next field.
        ("offsetof(IMB_JOB, user_data)", size_of::<Job>()),
        ("offsetof(IMB_MGR, features)", offset_of!(Head, features)),
        ("offsetof(IMB_MGR, used_arch)", offset_of!(Head, used_arch)),
        ("offsetof(IMB_MGR, imb_errno)", offset_of!(Head, errno)),
        ("offsetof(IMB_MGR, get_next_job)", offset_of!(Head, get_next_job)),
        ("offsetof(IMB_MGR, submit_job_nocheck)", offset_of!(Head, submit_job_nocheck)),
        ("sizeof(((IMB_JOB *)0)->status)", size_of::<c_int>()),
        ("sizeof(IMB_CIPHER_MODE)", size_of::<c_int>()),
        ("sizeof(IMB_CIPHER_DIRECTION)", size_of::<c_int>()),
        ("sizeof(IMB_HASH_ALG)", size_of::<c_int>()),
        ("sizeof(IMB_CHAIN_ORDER)", size_of::<c_int>()),
        ("sizeof(IMB_ARCH)", size_of::<c_int>()),
        ("IMB_DIR_ENCRYPT", Direction::Encrypt as usize),
        ("IMB_ORDER_CIPHER_HASH", Direction::Encrypt as usize),
        ("IMB_DIR_DECRYPT", Direction::Decrypt as usize),
        ("IMB_ORDER_HASH_CIPHER", Direction::Decrypt as usize),
        ("IMB_CIPHER_CHACHA20_POLY1305", CIPHER_CHACHA20_POLY1305 as usize),
        ("IMB_AUTH_CHACHA20_POLY1305", AUTH_CHACHA20_POLY1305 as usize),
        ("IMB_STATUS_COMPLETED", STATUS_COMPLETED as usize),
        ("IMB_ARCH_AVX512", AVX512 as usize),
        ("IMB_CPUFLAGS_AVX512_T2", AVX512_TYPE_2 as usize),
    ];
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("layout.c"), folder.path().join("layout"));
    let lines: String =
        ours.iter().map(|(what, _)| format!("printf(\"%zu\\n\", (size_t)({what}));\n")).collect();
    // The functions' declarations are checked by declaring them again.
    let text = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include <intel-ipsec-mb.h>\n\
         unsigned imb_get_version(void);\nIMB_MGR *alloc_mb_mgr(uint64_t);\nvoid free_mb_mgr(IMB_MGR *);\n\
         void init_mb_mgr_auto(IMB_MGR *, IMB_ARCH *);\n\
         static IMB_JOB *(**next)(IMB_MGR *) = &((IMB_MGR *)0)->get_next_job;\n\
         static IMB_JOB *(**submit)(IMB_MGR *) = &((IMB_MGR *)0)->submit_job_nocheck;\n\
         int main(void) {{ (void)next; (void)submit;\n{lines}printf(\"%u\\n\", IMB_VERSION_NUM); }}\n"
    );
    std::fs::write(&source, text).unwrap();
    let compiled = Command::new("cc").arg("-Werror").arg("-o").args([&program, &source]).output();
    let compiled = compiled.expect("a C compiler; as root: apt-get install gcc");
    let errors = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "as root: apt-get install libipsec-mb-dev\n{errors}");
    let said = Command::new(&program).output().unwrap().stdout;
    let theirs: Vec<usize> =
        str::from_utf8(&said).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    let (version, theirs) = theirs.split_last().unwrap();
    assert!(KNOWN.contains(&((version >> 8) as c_uint)), "the installed header's version is {version:#x}");
    for ((what, ours), theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours, theirs, "{what}");
    }
    assert_eq!(ours.len(), theirs.len());
}

/// The library; nothing on processors that it does not serve.
fn library() -> Option<IpsecMb> {
    match IpsecMb::get() {
        Ok(library) => Some(library),
        Err(error @ Unusable::Processor) => {
            eprintln!("not run: {error}");
            None
        }
        Err(error) => panic!("{error}; as root: apt-get install libipsec-mb1"),
    }
}

/// Before and behind the text are pages that nobody may touch.
#[test]
fn nothing_but_the_text_is_touched() {
    const PAGE: usize = 4096;
    let Some(library) = library() else { return };
    // SAFETY: new memory; then its first and its last page are taken away from everybody.
    let inner = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let whole = libc::mmap(null_mut(), 4 * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(whole, libc::MAP_FAILED);
        let whole: *mut u8 = whole.cast();
        assert_eq!(libc::mprotect(whole.cast(), PAGE, libc::PROT_NONE), 0);
        assert_eq!(libc::mprotect(whole.add(3 * PAGE).cast(), PAGE, libc::PROT_NONE), 0);
        std::slice::from_raw_parts_mut(whole.add(PAGE), 2 * PAGE)
    };
    for len in (0..=1600).chain(2 * PAGE - 20..=2 * PAGE) {
        for start in [0, 2 * PAGE - len] {
            inner.fill(0xaa);
            let text = &mut inner[start..start + len];
            let tag = library.seal(&[1; 32], &[2; 12], text);
            assert_eq!(library.open(&[1; 32], &[2; 12], text), tag);
            assert!(inner.iter().all(|&byte| byte == 0xaa), "{len} bytes at {start}");
        }
    }
    // SAFETY: it was mapped above, and nothing refers to it any more.
    unsafe { libc::munmap(inner.as_mut_ptr().sub(PAGE).cast(), 4 * PAGE) };
}

/// With large registers in use, SSE code is slow on some processors.
#[test]
fn registers_are_left_clean() {
    /// The state component of the upper halves of ymm0 to ymm15, and that of the upper halves of zmm0 to zmm15.
    const UPPER: u64 = (1 << 2) | (1 << 6);
    let Some(library) = library() else { return };
    let leaf = std::arch::x86_64::__cpuid_count(13, 1);
    if leaf.eax & (1 << 2) == 0 {
        return eprintln!("not run: the processor does not tell which registers are in use");
    }
    for len in [0, 1, 16, 80, 1424, 65_503] {
        library.seal(&[1; 32], &[2; 12], &mut vec![3; len]);
        assert_eq!(in_use() & UPPER, 0, "after sealing {len} bytes");
        library.open(&[1; 32], &[2; 12], &mut vec![3; len]);
        assert_eq!(in_use() & UPPER, 0, "after opening {len} bytes");
    }
    // Else the test would see nothing.
    // SAFETY: the library would not be here without AVX.
    assert_ne!(unsafe { dirty_and_in_use() } & UPPER, 0);

    fn in_use() -> u64 {
        // SAFETY: the processor has XGETBV with 1 (asked above), hence XSAVE.
        unsafe { xgetbv() }
    }

    #[target_feature(enable = "xsave")]
    unsafe fn xgetbv() -> u64 {
        // SAFETY: the caller has asked.
        unsafe { std::arch::x86_64::_xgetbv(1) }
    }

    #[target_feature(enable = "avx,xsave")]
    unsafe fn dirty_and_in_use() -> u64 {
        let used: u64;
        // SAFETY: it changes registers that it names.
        unsafe {
            std::arch::asm!(
                "vcmpps ymm0, ymm0, ymm0, 15",
                "xgetbv",
                "shl rdx, 32",
                "or rax, rdx",
                "vzeroupper",
                in("ecx") 1, out("rax") used, out("rdx") _, out("ymm0") _,
            );
        }
        used
    }
}
