//! How fast a cluster answers no-op calls: `throughput CONNECTION.json [SINGLES [IN_FLIGHT [MEMBERS]]]`.

use std::time::Instant;

use ipbroker_client::{Client, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().unwrap_or_else(|| {
        eprintln!("usage: throughput CONNECTION.json [SINGLES [IN_FLIGHT [MEMBERS]]]");
        std::process::exit(2);
    });
    let mut number = |default: u64| {
        arguments
            .next()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let (singles, in_flight, members) = (number(100_000), number(1000), number(1_000_000));
    let client = Client::builder().file(file).connect()?;
    println!("{} engines", client.wait_for_engines(1, None));
    for (name, view) in [
        (
            "single calls",
            client.load_balanced_view().acknowledged(false),
        ),
        ("single calls, acknowledged", client.load_balanced_view()),
    ] {
        let start = Instant::now();
        let mut count = 0u64;
        for result in view
            .imap::<(), _, _>("noop", 0..singles, in_flight as usize)?
            .unordered()
        {
            result?;
            count += 1;
        }
        println!(
            "{name}: {:.0}/s",
            count as f64 / start.elapsed().as_secs_f64()
        );
    }
    let start = Instant::now();
    let values = client
        .load_balanced_view()
        .map_count::<()>("noop", members)?
        .get()?;
    println!(
        "an array: {:.0}/s",
        values.len() as f64 / start.elapsed().as_secs_f64()
    );
    let start = Instant::now();
    let values = client
        .load_balanced_view()
        .map::<u64, _>("echo", 0..members)?
        .get()?;
    println!(
        "an array with arguments: {:.0}/s",
        values.len() as f64 / start.elapsed().as_secs_f64()
    );
    Ok(())
}
