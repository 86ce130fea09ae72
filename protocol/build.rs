//! Builds libzmq 4.3.5 with CURVE (feature `bundled`) against the libsodium of `libsodium-sys-stable`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "bundled")]
    bundled();
}

#[cfg(feature = "bundled")]
fn bundled() {
    use std::{env, path::Path};

    const AGAIN: &str = "IPBROKER_BUILD_ZMQ";
    if env::var_os(AGAIN).is_none() {
        // By the one way into libzmq's compiler that there is: what its own build would have found on this system, and
        // `-w`, as its warnings are nothing to whoever builds this.
        let mut flags = env::var("CXXFLAGS").unwrap_or_default();
        if env::var("TARGET").is_ok_and(|target| target.contains("linux")) {
            for found in LINUX {
                flags += &format!(" -D{found}");
            }
        }
        let built = env::current_exe().and_then(|this| {
            std::process::Command::new(this)
                .env(AGAIN, "1")
                .env("CXXFLAGS", format!("{flags} -w"))
                .status()
        });
        assert!(
            built.is_ok_and(|status| status.success()),
            "libzmq cannot be built"
        );
        return;
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

/// Where the C++ compiler keeps one of its own libraries.
#[cfg(feature = "bundled")]
fn compiler_file(name: &str) -> Option<String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let output = std::process::Command::new(compiler)
        .arg(format!("-print-file-name={name}"))
        .output()
        .ok()?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    std::path::Path::new(&path).is_absolute().then_some(path)
}
