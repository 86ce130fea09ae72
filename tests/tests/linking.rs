//! What the programs ask of the system they run on.

use std::process::Command;

use ipbroker_tests::program;

const PROGRAMS: [&str; 3] = ["ipctl", "ipengine", "ipclient"];

/// The pieces of glibc, by the beginnings of their names.
const GLIBC: [&str; 7] = [
    "linux-vdso",
    "libc.so",
    "libm.so",
    "libpthread.so",
    "libdl.so",
    "librt.so",
    "ld-linux",
];

fn output(command: &mut Command) -> String {
    let done = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(done.status.success(), "{command:?}: {done:?}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn the_programs_link_only_glibc() {
    for name in PROGRAMS {
        let needed = output(Command::new("ldd").arg(program(name)));
        for line in needed.lines().map(str::trim) {
            let library = line.split_whitespace().next().unwrap_or_default();
            let library = library.rsplit('/').next().unwrap_or_default();
            assert!(
                GLIBC.iter().any(|own| library.starts_with(own)),
                "{name} needs {line}"
            );
        }
    }
}

/// `2.36` of `…GLIBC_2.36…` or `ldd (…) 2.36`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().splitn(3, '.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn the_readme_names_the_glibc_that_they_need() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(readme).expect("README.md");
    let told = readme
        .split_once(" or later, as built on Debian 12")
        .and_then(|(before, _)| version(before.rsplit('(').next()?))
        .expect("README.md says which glibc the programs need");
    let here = output(Command::new("ldd").arg("--version"));
    let here = here
        .lines()
        .next()
        .and_then(|line| version(line.rsplit(' ').next()?))
        .expect("a version of glibc");
    for name in PROGRAMS {
        let versions = output(Command::new("readelf").arg("-VW").arg(program(name)));
        let needed = versions
            .split("GLIBC_")
            .skip(1)
            .filter_map(|rest| version(rest.split_whitespace().next()?))
            .max()
            .unwrap_or_else(|| panic!("{name} names no version of glibc"));
        eprintln!("{name} needs glibc {}.{}", needed.0, needed.1);
        assert!(needed <= here, "{name} runs here");
        // A newer system gives newer symbols.
        if here <= (2, 36) {
            assert!(
                needed <= told,
                "{name} needs {needed:?}, README.md says {told:?}"
            );
        }
    }
}
