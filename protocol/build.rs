//! Builds libzmq 4.3.5 with CURVE (feature `bundled`) against the libsodium of `libsodium-sys-stable`, with the changes of
//! `libzmq.patch`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=libzmq.patch");
    #[cfg(feature = "bundled")]
    bundled();
}

#[cfg(feature = "bundled")]
fn bundled() {
    use std::{env, path::Path};

    // Of the lines that cargo needs (`.cargo/config.toml`), this one can be seen from here.
    assert!(
        env::var_os("CXXSTDLIB").is_some(),
        "libzmq would be built twice: cargo needs the lines of `.cargo/config.toml`, or for `cargo install` the options --config, that \
         ipbroker's page on installing names (docs/operations/install.md)"
    );
    let Some(compiler) = env::var_os(COMPILER) else {
        // By the one way into libzmq's compiler that there is: what its own build would have found on this system, and
        // `-w`, as its warnings are nothing to whoever builds this.
        let mut flags = env::var("CXXFLAGS").unwrap_or_default();
        if env::var("TARGET").is_ok_and(|target| target.contains("linux")) {
            for found in LINUX {
                flags += &format!(" -D{found}");
            }
        }
        // This program again, which then has itself for a compiler.
        let compiler = cc::Build::new().cpp(true).get_compiler();
        let target = env::var("TARGET").unwrap_or_default();
        let built = env::current_exe().and_then(|this| {
            std::process::Command::new(&this)
                .env(COMPILER, compiler.path())
                .env(format!("CXX_{target}"), this)
                .env("CXXFLAGS", format!("{flags} -w"))
                .status()
        });
        assert!(
            built.is_ok_and(|status| status.success()),
            "libzmq cannot be built"
        );
        return;
    };
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    if !arguments.is_empty() {
        compile(&compiler, arguments);
    }
    let include =
        env::var("DEP_SODIUM_INCLUDE").expect("libsodium-sys-stable names its include directory");
    let lib = env::var("DEP_SODIUM_LIB")
        .or_else(|_| env::var("DEP_SODIUM_ROOT").map(|root| format!("{root}/lib")))
        .expect("libsodium-sys-stable names its library directory");
    zeromq_src::Build::new()
        .with_libsodium(Some(zeromq_src::LibLocation::new(
            Path::new(&lib),
            Path::new(&include),
        )))
        .build();
    let target = env::var("TARGET").unwrap_or_default();
    if target.contains("linux") {
        static_runtimes();
    } else if target.contains("apple") {
        println!("cargo:rustc-link-lib=c++");
    }
}

/// Names the compiler to the program that stands in for it.
#[cfg(feature = "bundled")]
const COMPILER: &str = "IPBROKER_ZMQ_COMPILER";

/// The header that is changed: every compilation reads it first, as later it would find the original beside its own file.
#[cfg(feature = "bundled")]
const HEADER: &str = "session_base.hpp";

/// Compiles one of libzmq's files, or what is made of it by `libzmq.patch`.
#[cfg(feature = "bundled")]
fn compile(compiler: &std::ffi::OsStr, mut arguments: Vec<std::ffi::OsString>) -> ! {
    use std::path::Path;

    let source = arguments.iter().position(|argument| {
        let path = Path::new(argument);
        path.parent().is_some_and(|dir| dir.ends_with("vendor/src"))
            && path.extension().is_some_and(|kind| kind == "cpp")
    });
    if let Some(at) = source {
        let header = Path::new(&arguments[at]).with_file_name(HEADER);
        let header = changed(&header).expect("libzmq.patch changes the header");
        if let Some(file) = changed(Path::new(&arguments[at])) {
            arguments[at] = file.into();
        }
        let first = [
            "-include".into(),
            "precompiled.hpp".into(),
            "-include".into(),
            header.into(),
        ];
        arguments.splice(0..0, first);
    }
    let status = std::process::Command::new(compiler)
        .args(arguments)
        .status();
    std::process::exit(status.ok().and_then(|status| status.code()).unwrap_or(1));
}

/// A copy of a file with the changes of `libzmq.patch`, if there are any.
#[cfg(feature = "bundled")]
fn changed(file: &std::path::Path) -> Option<std::path::PathBuf> {
    use std::{env, fs, path::Path, process};

    let name = file.file_name()?.to_str()?;
    let changes = fs::read_to_string("libzmq.patch").expect("libzmq.patch can be read");
    let at = changes.find(&format!("--- a/{name}\n"))?;
    let end = changes[at + 4..]
        .find("\n--- a/")
        .map_or(changes.len(), |end| at + 4 + end + 1);
    let patch = diffy::Patch::from_str(&changes[at..end]).expect("libzmq.patch is a patch");
    let original = fs::read_to_string(file).expect("libzmq's sources can be read");
    let text = diffy::apply(&original, &patch)
        .unwrap_or_else(|error| panic!("libzmq.patch does not fit {name}: {error}"));
    // Compilations run side by side: whole or not at all.
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let path = Path::new(&out).join(name);
    let part = Path::new(&out).join(format!("{name}.{}", process::id()));
    fs::write(&part, text)
        .and_then(|()| fs::rename(&part, &path))
        .expect("OUT_DIR can be written");
    Some(path)
}

/// What libzmq's configuration finds on Linux and `zeromq-src` leaves out. Without it threads wake each other through
/// socket pairs instead of eventfds, options for TCP keepalives are taken and ignored, and timers follow the clock on the wall.
#[cfg(feature = "bundled")]
const LINUX: [&str; 15] = [
    "ZMQ_HAVE_EVENTFD=1",
    "ZMQ_HAVE_EVENTFD_CLOEXEC=1",
    "ZMQ_IOTHREAD_POLLER_USE_EPOLL_CLOEXEC=1",
    "ZMQ_HAVE_SOCK_CLOEXEC=1",
    "ZMQ_HAVE_O_CLOEXEC=1",
    "HAVE_ACCEPT4=1",
    "HAVE_CLOCK_GETTIME=1",
    "HAVE_POSIX_MEMALIGN=1",
    "ZMQ_CACHELINE_SIZE=64",
    "ZMQ_HAVE_SO_KEEPALIVE=1",
    "ZMQ_HAVE_TCP_KEEPIDLE=1",
    "ZMQ_HAVE_TCP_KEEPINTVL=1",
    "ZMQ_HAVE_TCP_KEEPCNT=1",
    "ZMQ_HAVE_IFADDRS=1",
    "ZMQ_HAVE_PTHREAD_SETNAME_2=1",
];

/// Links the C++ run-time and libgcc statically where the compiler has them, so that the programs need only glibc.
#[cfg(feature = "bundled")]
fn static_runtimes() {
    use std::{env, fs, path::Path};

    let Some(stdcxx) = compiler_file("libstdc++.a") else {
        println!("cargo:rustc-link-lib=stdc++");
        return;
    };
    if let Some(dir) = Path::new(&stdcxx).parent() {
        println!("cargo:rustc-link-search=native={}", dir.display());
    }
    println!("cargo:rustc-link-lib=static:-bundle=stdc++");
    // Rust's standard library asks for `-lgcc_s`; found first, this linker script answers with the static halves.
    if let (Some(eh), Some(gcc)) = (compiler_file("libgcc_eh.a"), compiler_file("libgcc.a")) {
        let dir = Path::new(&env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("gcc");
        fs::create_dir_all(&dir).expect("OUT_DIR can be written");
        fs::write(dir.join("libgcc_s.so"), format!("GROUP ( {eh} {gcc} )\n"))
            .expect("OUT_DIR can be written");
        println!("cargo:rustc-link-search=native={}", dir.display());
    }
}

/// Where the C++ compiler keeps one of its own libraries. Zig's has none such: it takes `-lstdc++` for its own library.
#[cfg(feature = "bundled")]
fn compiler_file(name: &str) -> Option<String> {
    // Here `cc` would find this program, which stands in for the compiler and prints cargo's lines first.
    let output = std::process::Command::new(std::env::var_os(COMPILER)?)
        .arg(format!("-print-file-name={name}"))
        .output()
        .ok()?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    std::path::Path::new(&path).is_absolute().then_some(path)
}
