//! Random mutations of valid inputs, on stable Rust: a crash is written to a file, and the exit status says so.

use std::{
    fs, panic,
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use clap::Parser;
use ipbroker_tests::fuzz::{TARGETS, Target, mutate};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

#[derive(Parser)]
struct Options {
    /// Executions of each target.
    #[arg(long, default_value_t = 10_000_000)]
    executions: u64,
    /// Where the random numbers begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run this file through the one target that is named, instead.
    #[arg(long)]
    replay: Option<PathBuf>,
    /// Only these targets.
    targets: Vec<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let chosen: Vec<Target> = TARGETS
        .into_iter()
        .filter(|target| {
            options.targets.is_empty() || options.targets.iter().any(|name| name == target.name)
        })
        .collect();
    if chosen.is_empty() {
        eprintln!(
            "fuzz_run: no such target; there are {}",
            TARGETS.map(|target| target.name).join(", ")
        );
        return ExitCode::from(2);
    }
    if let Some(file) = &options.replay {
        let bytes = fs::read(file).expect("the file can be read");
        (chosen[0].run)(&bytes);
        println!("{}: returned", chosen[0].name);
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut failed) = (0, 0);
    for target in chosen {
        let start = Instant::now();
        match fuzz(&target, options.executions, options.seed) {
            None => {
                passed += 1;
                let rate = options.executions as f64 / start.elapsed().as_secs_f64();
                println!(
                    "{}: {} executions, none failed ({rate:.0}/s)",
                    target.name, options.executions
                );
            }
            Some(file) => {
                failed += 1;
                println!(
                    "{}: FAILED; again with: fuzz_run --replay {} {}",
                    target.name,
                    file.display(),
                    target.name
                );
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

/// The file of the first input that made the target panic.
fn fuzz(target: &Target, executions: u64, seed: u64) -> Option<PathBuf> {
    let lanes = thread::available_parallelism().map_or(1, usize::from) as u64;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes)
            .map(|lane| {
                let stop = &stop;
                let count = executions / lanes + u64::from(lane < executions % lanes);
                // As much stack as a thread of the programs has.
                thread::Builder::new()
                    .stack_size(2 << 20)
                    .spawn_scoped(scope, move || {
                        one_lane(target, count, seed ^ (lane << 32), stop)
                    })
                    .expect("a thread")
            })
            .collect();
        lanes
            .into_iter()
            .filter_map(|lane| lane.join().expect("the lane catches panics"))
            .next()
    })
}

fn one_lane(target: &Target, count: u64, seed: u64, stop: &AtomicBool) -> Option<PathBuf> {
    let mut random = SmallRng::seed_from_u64(seed);
    let seeds = (target.seeds)();
    for input in &seeds {
        (target.run)(input);
    }
    let mut input = Vec::new();
    for _ in 0..count {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        input.clear();
        input.extend_from_slice(&seeds[random.random_range(0..seeds.len())]);
        for _ in 0..random.random_range(1..=8) {
            mutate(&mut random, &mut input, &seeds);
        }
        if panic::catch_unwind(|| (target.run)(&input)).is_err() {
            stop.store(true, Ordering::Relaxed);
            let file = std::env::temp_dir().join(format!("fuzz-{}-{seed}.bin", target.name));
            fs::write(&file, &input).expect("the temporary directory can be written");
            return Some(file);
        }
    }
    None
}
