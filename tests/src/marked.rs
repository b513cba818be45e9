//! Secrets that are searched for, in every form that a program may write them in.

use std::collections::BTreeMap;

/// How many bytes of a form are looked up at once; no form is shorter.
const HEAD: usize = 8;

/// A secret, and the files that exist to hold it.
pub struct Marked {
    /// What it is.
    pub what: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The ends of the paths of files that may hold it.
    pub kept_in: Vec<String>,
}

/// Something that was printed or written.
pub struct Evidence {
    /// Where: the command, or the path of the file.
    pub from: String,
    /// What.
    pub bytes: Vec<u8>,
}

impl Marked {
    /// A secret of these bytes.
    pub fn new(what: impl Into<String>, bytes: impl Into<Vec<u8>>, kept_in: &[&str]) -> Self {
        let kept_in = kept_in.iter().map(|path| (*path).to_owned()).collect();
        Self { what: what.into(), bytes: bytes.into(), kept_in }
    }

    /// Every form that it may be written in: as it is, hexadecimal, numbers with commas, and base64 of both alphabets,
    /// alone or inside of something larger.
    pub fn forms(&self) -> Vec<Vec<u8>> {
        let numbers: Vec<_> = self.bytes.iter().map(u8::to_string).collect();
        let hex = |of: fn(&u8) -> String| self.bytes.iter().map(of).collect::<String>();
        let mut forms = vec![
            self.bytes.clone(),
            hex(|byte| format!("{byte:02x}")).into_bytes(),
            hex(|byte| format!("{byte:02X}")).into_bytes(),
            numbers.join(",").into_bytes(),
            numbers.join(", ").into_bytes(),
        ];
        for alphabet in [*b"+/", *b"-_"] {
            forms.extend((0..3).map(|before| base64(&self.bytes, before, alphabet)));
        }
        forms
    }
}

/// Base64 of bytes that come after some others, without the characters that depend on what is around, and so
/// without padding.
fn base64(bytes: &[u8], before: usize, [plus, slash]: [u8; 2]) -> Vec<u8> {
    let digit = |value: u32| match value {
        0..26 => b'A' + value as u8,
        26..52 => b'a' + value as u8 - 26,
        52..62 => b'0' + value as u8 - 52,
        62 => plus,
        _ => slash,
    };
    let all: Vec<u8> = std::iter::repeat_n(0, before).chain(bytes.iter().copied()).collect();
    let digits = all.chunks(3).flat_map(|chunk| {
        let bits =
            chunk.iter().chain([0, 0].iter()).take(3).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        [18, 12, 6, 0].map(|shift| digit(bits >> shift & 63))
    });
    let (first, end) = ((before * 8).div_ceil(6), all.len() * 8 / 6);
    digits.take(end).skip(first).collect()
}

/// Finds secrets in evidence: what is found where it may not be, in words.
pub fn found(secrets: &[Marked], evidence: &[Evidence]) -> Vec<String> {
    let mut by_head: BTreeMap<[u8; HEAD], Vec<(usize, Vec<u8>)>> = BTreeMap::new();
    let mut begins = vec![false; 1 << 16];
    let pair = |bytes: &[u8]| usize::from(bytes[0]) << 8 | usize::from(bytes[1]);
    for (place, secret) in secrets.iter().enumerate() {
        for form in secret.forms() {
            begins[pair(&form)] = true;
            let head = form[..HEAD].try_into().expect("a form is longer");
            by_head.entry(head).or_default().push((place, form));
        }
    }
    let mut found = Vec::new();
    for Evidence { from, bytes } in evidence {
        for at in 0..bytes.len().saturating_sub(HEAD - 1) {
            let rest = &bytes[at..];
            if !begins[pair(rest)] {
                continue;
            }
            let head: [u8; HEAD] = rest[..HEAD].try_into().expect("as long");
            for (place, form) in by_head.get(&head).into_iter().flatten() {
                let Marked { what, kept_in, .. } = &secrets[*place];
                if rest.starts_with(form) && !kept_in.iter().any(|end| from.ends_with(end.as_str())) {
                    let before = String::from_utf8_lossy(&bytes[at.saturating_sub(80)..at]).into_owned();
                    found.push(format!("{what} is in {from}, after {before:?}"));
                }
            }
        }
    }
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_a_part_is_found_wherever_the_part_begins() {
        assert_eq!(base64(b"Man", 0, *b"+/"), b"TWFu");
        // RFC 4648, section 10: foobar is Zm9vYmFy.
        assert_eq!(base64(b"oobar", 1, *b"+/"), b"9vYmFy");
        assert_eq!(base64(b"obar", 2, *b"+/"), b"vYmFy");
        assert_eq!(base64(b"fooba", 0, *b"+/"), b"Zm9vYm");
        assert_eq!(base64(&[0xfb, 0xff, 0xfe], 0, *b"-_"), b"-__-");
    }
}
