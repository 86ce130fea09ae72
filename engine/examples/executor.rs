//! An engine with an executor of its own: the calls of each logical engine share a sieve of primes, which grows as it is
//! asked for more. Functions have no such state; this has one for each engine, without a lock.
//!
//! Run it: `cargo run -p ipbroker-engine --example executor`

use ipbroker_engine::{
    Engine, EngineError,
    function::{Context, Executor, FunctionError},
};

/// The primes that were found so far, and up to where.
struct Sieve {
    primes: Vec<u64>,
    end: u64,
}

impl Sieve {
    fn grow(&mut self, end: u64) {
        for number in self.end..end {
            let divides = |prime: &u64| number % prime == 0;
            let small = self
                .primes
                .iter()
                .take_while(|prime| **prime * **prime <= number);
            if !small.clone().any(divides) {
                self.primes.push(number);
            }
        }
        self.end = self.end.max(end);
    }
}

impl Executor for Sieve {
    type Argument = u64;
    type Result = u64;

    fn call(
        &mut self,
        context: &Context<'_>,
        name: &str,
        number: u64,
    ) -> Result<u64, FunctionError> {
        if number > 10_000_000 {
            let why = format!("{number} is too much for {}", context.host());
            return Err(FunctionError::new("ValueError", why));
        }
        match name {
            // How many primes are below a number.
            "primes_below" => {
                self.grow(number);
                Ok(self.primes.partition_point(|prime| *prime < number) as u64)
            }
            // Up to where this engine knows them by now.
            _ => Ok(self.end),
        }
    }
}

fn main() -> Result<(), EngineError> {
    ipbroker_engine::init();
    Engine::builder()
        .engines(2)
        .executor(["primes_below", "known"], |_| {
            Ok(Sieve {
                primes: Vec::new(),
                end: 2,
            })
        })
        .run()
}
