//! How numbers, times, paths and words are written for people: once, for every program.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// What stands in a cell of a table that has nothing to show.
pub const NOTHING: &str = "-";

/// A number of things: `1 node`, `2 nodes`; `one` is the singular.
pub fn count(number: impl Into<u64>, one: &str) -> String {
    match number.into() {
        1 => format!("1 {one}"),
        number if one.ends_with("ss") => format!("{number} {one}es"),
        number => format!("{number} {one}s"),
    }
}

/// A time to the second, in UTC.
pub fn moment(time: Timestamp) -> String {
    time.to_zoned_datetime(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// How long ago a time was, in one unit; a time in the future counts as now.
pub fn ago(time: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(now.duration_since(time).as_secs().max(0)))
}

/// How far away a time is, in one unit: `in 25 days`; a time in the past counts as now.
pub fn until(time: Timestamp, now: Timestamp) -> String {
    format!("in {}", span(time.duration_since(now).as_secs().max(0)))
}

fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The order in which people look for names: numbers in them count as numbers, so `host-2` is before `host-10`.
/// Names that differ in leading zeros alone are in the order of their characters.
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    while let (Some(one), Some(other)) = (left.chars().next(), right.chars().next()) {
        let order = if one.is_ascii_digit() && other.is_ascii_digit() {
            let (first, second) = (digits(&mut left), digits(&mut right));
            first.len().cmp(&second.len()).then_with(|| first.cmp(second))
        } else {
            (left, right) = (&left[one.len_utf8()..], &right[other.len_utf8()..]);
            one.cmp(&other)
        };
        if order.is_ne() {
            return order;
        }
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// Takes the digits off that a text begins with; without leading zeros.
fn digits<'a>(text: &mut &'a str) -> &'a str {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    digits.trim_start_matches('0')
}

/// A text that anybody may have written, such as the message of a commit: nothing of it that controls a terminal, or
/// the order of what is on it, reaches one.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if is_shown(c) { c } else { '\u{fffd}' }).collect()
}

/// Whether a character is shown where it stands: it is no control character, no separator of lines, and none that
/// is invisible or changes the direction of others (UAX #9; categories Cc, Cf, Zl and Zp).
pub fn is_shown(c: char) -> bool {
    let unseen = [
        '\u{ad}'..='\u{ad}',
        '\u{600}'..='\u{605}',
        '\u{61c}'..='\u{61c}',
        '\u{6dd}'..='\u{6dd}',
        '\u{70f}'..='\u{70f}',
        '\u{180e}'..='\u{180e}',
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
        '\u{feff}'..='\u{feff}',
        '\u{fff9}'..='\u{fffb}',
        '\u{e0000}'..='\u{e007f}',
    ];
    !c.is_control() && !unseen.iter().any(|range| range.contains(&c))
}

/// A path as it was given, without components that mean nothing, for people: what must not reach a terminal is
/// replaced, as by [`plain`]. The current directory is `.`.
pub fn path(path: &Path) -> String {
    plain(&name(path))
}

/// The same with every character, by which the file can be found again.
pub fn name(path: &Path) -> String {
    let plain: PathBuf = path.components().collect();
    let plain = plain.strip_prefix(".").unwrap_or(&plain);
    if plain.as_os_str().is_empty() { ".".into() } else { plain.display().to_string() }
}

/// A word as a shell reads it, in quotes where it needs them.
pub fn word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_everything_else_plural() {
        assert_eq!([0_u64, 1, 2].map(|number| count(number, "key")), ["0 keys", "1 key", "2 keys"]);
        assert_eq!(count(2_u64, "address"), "2 addresses");
    }

    #[test]
    fn a_time_has_no_fraction() {
        let time: Timestamp = "2026-11-24T12:00:01.123456789Z".parse().expect("good");
        assert_eq!(moment(time), "2026-11-24 12:00:01 UTC");
        let after = |seconds| ago(time, time + jiff::SignedDuration::from_secs(seconds));
        assert_eq!(
            [-5, 119, 120, 7_200, 172_800].map(after),
            ["0 s ago", "119 s ago", "2 min ago", "2 h ago", "2 days ago"]
        );
    }

    #[test]
    fn names_with_numbers_are_in_the_order_of_the_numbers() {
        let sorted = ["", "a", "a-2", "a-10", "a-10-b", "a02", "a2", "a10b2", "a10b10", "b", "b1"];
        let place = |name: &str| sorted.iter().position(|it| *it == name);
        for (one, other) in sorted.iter().flat_map(|one| sorted.iter().map(move |other| (*one, *other))) {
            assert_eq!(natural(one, other), place(one).cmp(&place(other)), "{one} {other}");
        }
        assert_eq!(natural("n18446744073709551616", "n18446744073709551617"), Ordering::Less, "any length");
    }

    #[test]
    fn a_time_that_comes_is_as_far_away_as_one_that_was() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().expect("good");
        let after = |seconds| until(now + jiff::SignedDuration::from_secs(seconds), now);
        assert_eq!([-5, 119, 7_200, 172_800].map(after), ["in 0 s", "in 119 s", "in 2 h", "in 2 days"]);
    }

    #[test]
    fn a_path_is_written_as_it_was_given() {
        for (given, shown) in [
            ("./mesh/./corp.kdl", "mesh/corp.kdl"),
            (".", "."),
            ("", "."),
            ("/a/../b", "/a/../b"),
            ("a/", "a"),
        ] {
            assert_eq!(path(Path::new(given)), shown, "{given}");
        }
        let turned = Path::new("./a\u{202e}ldk.kdl");
        assert_eq!([path(turned), name(turned)], ["a\u{fffd}ldk.kdl", "a\u{202e}ldk.kdl"]);
    }

    #[test]
    fn a_word_is_one_word_to_a_shell() {
        for (given, shown) in [
            ("keys.json", "keys.json"),
            ("my keys", "'my keys'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
            ("$x", "'$x'"),
        ] {
            assert_eq!(word(given), shown);
        }
    }
}
