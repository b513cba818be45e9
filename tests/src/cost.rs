//! What a whole program costs, as the operating system accounts for it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Usage, UsageWho, getrusage};

/// What one run cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// From start to end.
    pub wall: Duration,
    /// In user and kernel mode, of all its threads.
    pub cpu: Duration,
    /// The largest resident set of any program that was run so far, in bytes: run the small ones first.
    pub memory: u64,
}

/// What several runs cost.
pub type Costs = Vec<Cost>;

/// Runs a program to its end.
///
/// # Panics
///
/// When it fails.
pub fn measure(mut command: Command) -> Cost {
    let before = children();
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    let wall = start.elapsed();
    let after = children();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Cost { wall, cpu: cpu(&after) - cpu(&before), memory: u64::try_from(after.max_rss()).unwrap_or(0) << 10 }
}

/// The median of each figure.
pub fn median(costs: &[Cost]) -> Cost {
    fn middle<T: Ord>(figures: impl Iterator<Item = T>) -> T {
        let mut sorted: Vec<T> = figures.collect();
        sorted.sort();
        let place = sorted.len() / 2;
        sorted.swap_remove(place)
    }
    Cost {
        wall: middle(costs.iter().map(|cost| cost.wall)),
        cpu: middle(costs.iter().map(|cost| cost.cpu)),
        memory: middle(costs.iter().map(|cost| cost.memory)),
    }
}

fn children() -> Usage {
    getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel accounts for children")
}

fn cpu(usage: &Usage) -> Duration {
    let of = |time: nix::sys::time::TimeVal| {
        Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0))
    };
    of(usage.user_time()) + of(usage.system_time())
}
