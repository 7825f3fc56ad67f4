//! The engines of the AEAD against each other. Where the processor has none but `ring`, this is told as not run; where the
//! library is just not installed, it is a failure.

use std::process::{Command, ExitCode};
use std::thread;

use anyhow::{Result, bail, ensure};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use warren_testkit::scenario::{self, Scenario, not_run};
use warren_tunnel::aead::{Choice, Engine, Key, Unusable};

const SCENARIOS: &[(&str, Scenario)] = &[
    ("any text under any key", any_text),
    ("each bit of tag and text counts", each_bit_counts),
    ("threads at the same time", threads),
    ("a key tells nothing of itself", debug),
    ("the program says who encrypts", version),
];

fn main() -> ExitCode {
    scenario::run_unprivileged(SCENARIOS)
}

fn ipsec_mb() -> Result<Engine> {
    match Engine::new(Choice::IpsecMb) {
        Ok(engine) => Ok(engine),
        Err(error @ Unusable::Processor) => Err(not_run(error.to_string())),
        Err(error) => bail!("{error}; as root: apt-get install libipsec-mb1"),
    }
}

/// One seals and the other opens, both ways; both seal to the same.
fn any_text() -> Result<()> {
    let engine = ipsec_mb()?;
    let text = prop_oneof![
        9 => prop::collection::vec(any::<u8>(), 0..2100),
        1 => prop::collection::vec(any::<u8>(), 0..65_504),
    ];
    let config = Config { cases: 2000, failure_persistence: None, ..Config::default() };
    let inputs = (any::<[u8; 32]>(), any::<u64>(), text);
    TestRunner::new(config).run(&inputs, |(bytes, counter, text)| {
        let keys = [Key::with(Engine::Ring, &bytes), Key::with(engine, &bytes)];
        let sealed = keys.each_ref().map(|key| {
            let mut text = text.clone();
            let tag = key.seal(counter, &mut text).unwrap();
            (text, tag)
        });
        prop_assert_eq!(&sealed[0], &sealed[1]);
        for key in &keys {
            let (mut opened, tag) = sealed[0].clone();
            prop_assert_eq!(key.open(counter, &mut opened, &tag), Ok(()));
            prop_assert_eq!(&opened, &text);
            prop_assert!(key.open(counter ^ 1, &mut sealed[0].0.clone(), &tag).is_err());
        }
        Ok(())
    })?;
    Ok(())
}

fn each_bit_counts() -> Result<()> {
    for engine in [Engine::Ring, ipsec_mb()?] {
        let key = Key::with(engine, &[7; 32]);
        for len in [0, 1, 16, 17, 80, 255] {
            let mut sealed = vec![9; len];
            let tag = key.seal(3, &mut sealed)?;
            for bit in 0..8 * (len + 16) {
                let (mut text, mut tag) = (sealed.clone(), tag);
                match bit / 8 {
                    at if at < len => text[at] ^= 1 << (bit % 8),
                    at => tag[at - len] ^= 1 << (bit % 8),
                }
                ensure!(key.open(3, &mut text, &tag).is_err(), "{engine}: bit {bit} of {len} bytes");
                ensure!(text.iter().all(|&byte| byte == 0), "{engine}: what was forged is given out");
            }
            let mut text = sealed.clone();
            ensure!(key.open(3, &mut text, &tag).is_ok() && text == vec![9; len], "{engine}: {len} bytes");
        }
    }
    Ok(())
}

/// One key for all of them; threads come and go.
fn threads() -> Result<()> {
    let bytes = [5; 32];
    let (key, ring) = (&Key::with(ipsec_mb()?, &bytes), &Key::with(Engine::Ring, &bytes));
    for _ in 0..10 {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..8_u64)
                .map(|number| {
                    scope.spawn(move || {
                        (0..500).all(|turn| {
                            let (counter, plain) =
                                ((number << 32) | turn, vec![turn as u8; turn as usize * 3]);
                            let mut text = plain.clone();
                            let tag = key.seal(counter, &mut text).unwrap();
                            ring.open(counter, &mut text, &tag).is_ok() && text == plain
                        })
                    })
                })
                .collect();
            threads.into_iter().all(|thread| thread.join().unwrap_or(false))
        })
        .then_some(())
        .ok_or_else(|| anyhow::anyhow!("threads disturb each other"))?;
    }
    Ok(())
}

fn debug() -> Result<()> {
    for engine in [Engine::Ring, ipsec_mb()?] {
        let said = format!("{:?}", Key::with(engine, &[0x41; 32]));
        ensure!(said == format!("Key({engine})"), "{said}");
    }
    Ok(())
}

/// What figures of speed are worth nothing without.
fn version() -> Result<()> {
    let version = |engine: &str| -> Result<String> {
        let mut program = Command::new(env!("CARGO_BIN_EXE_warren-tunnel"));
        let output = program.args(["--aead", engine, "--version"]).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let wanted = |engine: &str| format!("warren-tunnel {}, AEAD by {engine}\n", env!("CARGO_PKG_VERSION"));
    ensure!(version("ring")? == wanted("ring"), "{}", version("ring")?);
    ipsec_mb()?;
    ensure!(version("auto")? == wanted("ipsec-mb"), "{}", version("auto")?);
    Ok(())
}
