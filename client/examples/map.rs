//! A function over many arguments. `length` and `root` are functions of `engine/examples/functions.rs`.

use ipbroker_client::{Client, Result};

fn main() -> Result<()> {
    let client = Client::builder().profile("default").connect()?;
    client.wait_for_engines(1, None);
    let view = client.load_balanced_view().retries(2);

    let lengths: Vec<usize> = view.map("length", ["one", "three"])?.get()?;
    println!("{lengths:?}");

    // A million calls are a few messages; results come in order while others still run.
    let roots = view.map::<f64, _>("root", (0..1_000_000).map(f64::from))?;
    let mut sum = 0.0;
    for root in roots.iter() {
        sum += root?;
    }
    println!("{sum:.3} after {:?}", roots.elapsed());

    // An error of a function comes back as an error.
    let error = view.apply::<f64>("root", &-1.0)?.get().unwrap_err();
    println!("{error}");
    Ok(())
}
