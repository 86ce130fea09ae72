//! Results as they end, and how far it is.

use std::time::Duration;

use ipbroker_client::{Client, Result};

fn main() -> Result<()> {
    let client = Client::builder().profile("default").connect()?;
    client.wait_for_engines(1, None);
    let view = client.load_balanced_view();
    // Seconds to sleep, one call a message: they end in another order than they were given.
    let calls = view.map_chunks::<f64, _>("sleep", [0.3, 0.2, 0.1, 0.0], 1)?;
    for result in calls.iter_unordered() {
        let (index, outcome) = result;
        let (done, all) = calls.progress();
        println!("call {index} has ended ({done} of {all}): {outcome:?}");
    }
    let more = view.map::<f64, _>("sleep", vec![0.01; 100])?;
    more.wait_interactive(Duration::from_millis(200));
    println!("{} calls, {} failed", more.len(), more.failed());
    Ok(())
}
