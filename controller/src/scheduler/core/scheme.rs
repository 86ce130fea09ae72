//! Which engine gets a task: the trait that schemes implement, and a short way to one's own.
//!
//! A scheme sees engines only through an [`Index`] per set of engines, in which exactly those are that
//! have room. The built-in ones choose in O(log n).

use rand::rngs::SmallRng;

use super::EngineKey;
use super::schemes::{Dense, Ordered, Weighted};

/// What a scheme knows of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The engine.
    pub engine: EngineKey,
    /// Tasks it holds.
    pub load: u32,
    /// Goes up with each assignment: the smallest is the least recently used.
    pub last_used: u64,
}

/// A way to choose engines. It makes an [`Index`] for each set of engines that some tasks are restricted to.
pub trait Scheme: Send {
    /// Its name, as in `--scheme=NAME`.
    fn name(&self) -> &str;
    /// An empty index. Indexes may be thrown away and built anew at any time.
    fn index(&self) -> Box<dyn Index>;
}

/// The engines of one set that have room, kept such that choosing is quick.
pub trait Index: Send {
    /// This engine has room, with these figures (it may be in the index already, with others).
    fn set(&mut self, candidate: Candidate);
    /// This engine has no room now (it may not be in the index).
    fn remove(&mut self, engine: EngineKey);
    /// One of the engines but none of `refused`; `None` only if there is none.
    fn choose(&mut self, rng: &mut SmallRng, refused: &[EngineKey]) -> Option<EngineKey>;
}

macro_rules! builtin {
    ($($(#[$doc:meta])* $scheme:ident = $name:literal, $index:expr;)*) => {
        /// The schemes that `ipctl` knows: those of IPython parallel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Builtin { $($(#[$doc])* $scheme,)* }

        impl Builtin {
            /// All of them.
            pub const ALL: &[Builtin] = &[$(Builtin::$scheme),*];
        }

        impl Scheme for Builtin {
            fn name(&self) -> &str {
                match self { $(Builtin::$scheme => $name,)* }
            }

            fn index(&self) -> Box<dyn Index> {
                match self { $(Builtin::$scheme => Box::new($index),)* }
            }
        }
    };
}

builtin! {
    /// The engine with the fewest tasks; the least recently used of several.
    LeastLoad = "leastload", Ordered::by_load();
    /// The least recently used engine.
    Lru = "lru", Ordered::by_use();
    /// Any engine.
    PlainRandom = "plainrandom", Dense::random();
    /// The less recently used of two random engines.
    TwoBin = "twobin", Dense::two_bin();
    /// The less loaded of two engines drawn with the inverse of their loads as weights.
    Weighted = "weighted", Weighted::default();
}

impl std::fmt::Display for Builtin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The built-in scheme of that name.
pub fn scheme(name: &str) -> Option<Box<dyn Scheme>> {
    let known = Builtin::ALL.iter().find(|s| s.name() == name);
    known.map(|s| Box::new(*s) as Box<dyn Scheme>)
}

/// A scheme from a function, as IPython parallel has them: of the candidates, least recently used first, it
/// returns the position of the one to take. It costs in proportion to the number of engines; implement
/// [`Scheme`] and [`Index`] to do better.
pub fn own_scheme<F>(name: &str, choose: F) -> Box<dyn Scheme>
where
    F: Fn(&[Candidate], &mut SmallRng) -> usize + Clone + Send + 'static,
{
    Box::new(Own {
        name: name.to_owned(),
        choose,
    })
}

struct Own<F> {
    name: String,
    choose: F,
}

impl<F> Scheme for Own<F>
where
    F: Fn(&[Candidate], &mut SmallRng) -> usize + Clone + Send + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn index(&self) -> Box<dyn Index> {
        Box::new(OwnIndex {
            candidates: Vec::new(),
            choose: self.choose.clone(),
        })
    }
}

struct OwnIndex<F> {
    candidates: Vec<Candidate>,
    choose: F,
}

impl<F> Index for OwnIndex<F>
where
    F: Fn(&[Candidate], &mut SmallRng) -> usize + Send,
{
    fn set(&mut self, candidate: Candidate) {
        self.remove(candidate.engine);
        let at = self
            .candidates
            .partition_point(|c| c.last_used <= candidate.last_used);
        self.candidates.insert(at, candidate);
    }

    fn remove(&mut self, engine: EngineKey) {
        self.candidates.retain(|c| c.engine != engine);
    }

    fn choose(&mut self, rng: &mut SmallRng, refused: &[EngineKey]) -> Option<EngineKey> {
        let allowed: Vec<Candidate> = self
            .candidates
            .iter()
            .filter(|c| !refused.contains(&c.engine))
            .copied()
            .collect();
        if allowed.is_empty() {
            return None;
        }
        let at = (self.choose)(&allowed, rng).min(allowed.len() - 1);
        Some(allowed[at].engine)
    }
}
