//! Results with `.await`. Any executor will do; the one below is as small as they come.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use ipbroker_client::{Client, Error, Result};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

fn main() -> Result<()> {
    let client = Client::builder().profile("default").connect()?;
    client.wait_for_engines(1, None);
    let view = client.load_balanced_view();
    let sum: u64 = block_on(async {
        let first: u64 = view.apply("echo", &20u64)?.await?;
        let second: u64 = view.apply("echo", &(first + 1))?.await?;
        Ok::<_, Error>(first + second)
    })?;
    println!("{sum}");
    Ok(())
}
