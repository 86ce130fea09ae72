//! Calls through the client library, as one array or message by message; prints how fast that was as JSON.

use std::{path::PathBuf, time::Instant};

use clap::Parser;
use ipbroker_client::Client;
use serde_json::json;

#[derive(Parser)]
struct Options {
    /// The connection file.
    #[arg(long)]
    file: PathBuf,
    /// How many calls.
    #[arg(long, default_value_t = 1_000_000)]
    count: u64,
    /// Wait until this many engines are registered.
    #[arg(long, default_value_t = 2)]
    engines: usize,
    /// One call at a time instead, each awaited.
    #[arg(long)]
    one_by_one: bool,
    /// Single calls instead of an array, all at once.
    #[arg(long)]
    single: bool,
    /// The same; each call sleeps for so many seconds.
    #[arg(long)]
    sleep: Option<f64>,
    /// Every so many-th of those sleeps for a second.
    #[arg(long)]
    second_every: Option<u64>,
}

fn main() -> ipbroker_client::Result<()> {
    let options = Options::parse();
    let client = Client::builder().file(&options.file).connect()?;
    client.wait_for_engines(options.engines, None);
    let view = client.load_balanced_view();
    view.map_count::<()>("noop", 1000)?.get()?;
    if options.one_by_one {
        let mut taken: Vec<f64> = Vec::new();
        for _ in 0..options.count {
            let start = Instant::now();
            view.apply::<()>("noop", &())?.get()?;
            taken.push(start.elapsed().as_secs_f64() * 1e6);
        }
        taken.sort_by(f64::total_cmp);
        let at = |part: f64| taken[((taken.len() - 1) as f64 * part) as usize];
        println!(
            "{}",
            json!({"tasks": options.count, "p50_us": at(0.5), "p99_us": at(0.99)})
        );
        return Ok(());
    }
    if let Some(sleep) = options.sleep {
        let long = |number: u64| {
            options
                .second_every
                .is_some_and(|every| number.is_multiple_of(every))
        };
        let start = Instant::now();
        let calls = (0..options.count)
            .map(|number| view.apply::<f64>("sleep", &if long(number) { 1.0 } else { sleep }))
            .collect::<ipbroker_client::Result<Vec<_>>>()?;
        for call in calls {
            call.get()?;
        }
        let took = start.elapsed().as_secs_f64();
        println!("{}", json!({"tasks": options.count, "seconds": took}));
        return Ok(());
    }
    if options.single {
        let start = Instant::now();
        let calls = (0..options.count)
            .map(|_| view.apply::<()>("noop", &()))
            .collect::<ipbroker_client::Result<Vec<_>>>()?;
        for call in calls {
            call.get()?;
        }
        let took = start.elapsed().as_secs_f64();
        println!(
            "{}",
            json!({"tasks": options.count, "seconds": took, "rate": options.count as f64 / took})
        );
        return Ok(());
    }
    let start = Instant::now();
    let result = view.map_count::<()>("noop", options.count)?;
    result.wait(None);
    let took = start.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({"tasks": options.count, "seconds": took, "rate": options.count as f64 / took, "failed": result.failed()})
    );
    Ok(())
}
