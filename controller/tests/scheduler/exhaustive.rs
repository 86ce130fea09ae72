//! All graphs of up to four tasks over two engines, with all outcomes in all orders, against the model.
//!
//! Each pair of tasks may be unrelated, or the later one comes after the earlier or follows it; a task's
//! dependencies are all-or-any, on success, failure or both. Wherever something can happen in several ways (which
//! engine answers, how, whether one leaves and had started what it held) every way is taken. By default every
//! graph of up to three tasks is checked and a part of those of four; `IPBROKER_SCHEDULER_EXHAUSTIVE=1` checks
//! all, which takes many minutes.

use ipbroker_controller::scheduler::core::{Dependency, Outcome};

use crate::model::World;

/// Takes every path through a tree of choices, one run each.
#[derive(Default)]
struct Choices {
    taken: Vec<(usize, usize)>,
    at: usize,
}

impl Choices {
    fn choose(&mut self, of: usize) -> usize {
        if self.at == self.taken.len() {
            self.taken.push((0, of));
        }
        let (choice, _) = self.taken[self.at];
        self.at += 1;
        choice
    }

    /// Turns to the next path; false after the last.
    fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((choice, of)) = self.taken.pop() {
            if choice + 1 < of {
                self.taken.push((choice + 1, of));
                return true;
            }
        }
        false
    }
}

#[derive(Clone, Copy, Debug)]
struct Graph {
    tasks: usize,
    /// A digit to the base of three for each pair: unrelated, after, follow.
    edges: usize,
    /// All or any, and what counts.
    mode: usize,
    retries: u32,
    may_return: bool,
    /// An engine may leave once.
    leaves: bool,
    hwm: u16,
}

fn dependencies(graph: Graph, task: usize) -> (Option<Dependency>, Option<Dependency>) {
    let (mut after, mut follow) = (Vec::new(), Vec::new());
    let before: usize = (0..task).sum();
    for on in 0..task {
        match graph.edges / 3usize.pow((before + on) as u32) % 3 {
            1 => after.push(format!("t{on}")),
            2 => follow.push(format!("t{on}")),
            _ => {}
        }
    }
    let (success, failure) = [(true, false), (false, true), (true, true)][graph.mode / 2];
    let dep = |ids: Vec<String>| {
        (!ids.is_empty()).then_some(Dependency {
            ids,
            all: graph.mode.is_multiple_of(2),
            success,
            failure,
        })
    };
    (dep(after), dep(follow))
}

/// All runs of a graph; how many there were.
fn check(graph: Graph) -> u64 {
    let mut choices = Choices::default();
    let mut runs = 0;
    loop {
        let result = walk(graph, &mut choices);
        if let Err(text) = result {
            panic!("{graph:?}, choices {:?}: {text}", choices.taken);
        }
        runs += 1;
        if !choices.next() {
            return runs;
        }
    }
}

fn walk(graph: Graph, choices: &mut Choices) -> Result<(), String> {
    let mut world = World::new([graph.hwm, 1, 0, 0]);
    world.join_simple()?;
    world.join_simple()?;
    for task in 0..graph.tasks {
        let (after, follow) = dependencies(graph, task);
        world.submit_simple(after, follow, graph.retries, graph.may_return, &[], 0)?;
    }
    let mut may_leave = graph.leaves;
    for _ in 0..40 {
        let busy = world.busy();
        let alive = world.alive();
        let leaving = if may_leave { 2 * alive.len() } else { 0 };
        if busy.is_empty() {
            return Ok(());
        }
        let choice = choices.choose(2 * busy.len() + leaving);
        match choice.checked_sub(2 * busy.len()) {
            None => {
                let outcome = if choice.is_multiple_of(2) {
                    Outcome::Ok
                } else {
                    Outcome::Error
                };
                world.reply_first(busy[choice / 2], outcome)?;
            }
            Some(leave) => {
                may_leave = false;
                world.leave_simple(alive[leave / 2], leave % 2 == 0)?;
            }
        }
    }
    Err("it does not come to an end".to_owned())
}

/// Alternatives, and whole hosts.
type Demand = (&'static [&'static [(&'static str, u64)]], usize);

/// What tasks of a small mix ask for.
const DEMANDS: [Demand; 7] = [
    (&[], 0),
    (&[], 1),
    (&[], 2),
    (&[&[("cpus", 3000)]], 0),
    (&[&[("gpus", 2000)]], 0),
    (&[&[("gpus", 1000)], &[("cpus", 2000)]], 0),
    (
        &[
            &[("lic", 1000)],
            &[("gpus", 1000), ("lic", 500)],
            &[("cpus", 4000)],
        ],
        0,
    ),
];

/// All ways in which a mix of tasks can go on two hosts.
fn mix(demands: &[usize], choices: &mut Choices) -> Result<(), String> {
    let mut world = World::new([0, 1, 0, 0]);
    for host in ["h0", "h0", "h1"] {
        world.join_host(host)?;
    }
    for &demand in demands {
        let (requests, nodes) = DEMANDS[demand];
        world.submit_simple(None, None, 1, true, requests, nodes)?;
    }
    let mut may_leave = true;
    for _ in 0..40 {
        let busy = world.busy();
        if busy.is_empty() {
            return Ok(());
        }
        let alive = world.alive();
        let leaving = if may_leave { alive.len() } else { 0 };
        let choice = choices.choose(busy.len() + leaving);
        match choice.checked_sub(busy.len()) {
            None => world.reply_first(busy[choice], Outcome::Ok)?,
            Some(leave) => {
                may_leave = false;
                world.leave_simple(alive[leave], true)?;
            }
        }
    }
    Err("it does not come to an end".to_owned())
}

#[test]
fn all_small_mixes() {
    let count = DEMANDS.len();
    let mut runs = 0u64;
    let everything = std::env::var_os("IPBROKER_SCHEDULER_EXHAUSTIVE").is_some();
    for number in (0..count.pow(4)).step_by(if everything { 1 } else { 5 }) {
        let demands: Vec<usize> = (0..4).map(|at| number / count.pow(at) % count).collect();
        let mut choices = Choices::default();
        loop {
            if let Err(text) = mix(&demands, &mut choices) {
                panic!("{demands:?}, choices {:?}: {text}", choices.taken);
            }
            runs += 1;
            if !choices.next() {
                break;
            }
        }
    }
    eprintln!("{runs} runs");
}

#[test]
fn all_small_graphs() {
    let everything = std::env::var_os("IPBROKER_SCHEDULER_EXHAUSTIVE").is_some();
    let (mut runs, mut graphs) = (0, 0u64);
    for tasks in 1..=4 {
        let pairs = (0..tasks).sum::<usize>() as u32;
        for edges in 0..3usize.pow(pairs) {
            for mode in 0..6 {
                for variant in 0..4 {
                    let graph = Graph {
                        tasks,
                        edges,
                        mode,
                        retries: u32::from(variant == 1 && tasks < 4),
                        may_return: edges % 2 == 0,
                        leaves: variant >= 2 && (tasks < 4 || everything),
                        hwm: u16::from(variant == 3),
                    };
                    let number = edges * 24 + mode * 4 + variant;
                    let thin = if tasks == 4 {
                        97
                    } else if tasks == 3 {
                        3
                    } else {
                        1
                    };
                    if everything || number % thin == 0 {
                        runs += check(graph);
                        graphs += 1;
                    }
                }
            }
        }
    }
    eprintln!("{graphs} graphs, {runs} runs");
}
