//! Changes of texts: lines and words of them moved, repeated, dropped, and replaced.

use super::{Draw, bytes};

/// One to three changes of lines or words. Numbers are replaced by those at which something often breaks, words by other
/// words of the text or by some of `known`.
pub(super) fn change(text: &[u8], draw: &mut Draw, known: &[&str]) -> Vec<u8> {
    let Ok(text) = str::from_utf8(text) else { return bytes::change(text, draw) };
    if draw.chance(10) {
        return bytes::change(text.as_bytes(), draw);
    }
    let mut text = text.to_owned();
    for _ in 0..=draw.below(3) {
        text = if draw.chance(4) { other_lines(&text, draw) } else { other_words(&text, draw, known) };
    }
    text.into_bytes()
}

fn other_lines(text: &str, draw: &mut Draw) -> String {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    let (at, other) = (draw.below(lines.len()), draw.below(lines.len()));
    match draw.below(5) {
        _ if lines.is_empty() => {}
        0 => lines.swap(at, other),
        1 => lines.insert(other, lines[at]),
        2 => lines.truncate(at),
        _ => _ = lines.remove(at),
    }
    lines.concat()
}

fn other_words(text: &str, draw: &mut Draw, known: &[&str]) -> String {
    let mut words = split(text);
    let spoken: Vec<usize> = (0..words.len()).filter(|&i| !words[i].trim().is_empty()).collect();
    let (Some(&at), Some(&other)) = (draw.of(&spoken), draw.of(&spoken)) else { return text.to_owned() };
    let number;
    if draw.chance(4) {
        // In all places: types stay consistent.
        number = if draw.chance(2) { draw.extent().to_string() } else { words[other].to_owned() };
        let word = words[at];
        return words.into_iter().map(|w| if w == word { number.as_str() } else { w }).collect();
    }
    if words[at].bytes().all(|b| b.is_ascii_digit()) && !draw.chance(4) {
        number = draw.extent().to_string();
        words[at] = &number;
        return words.concat();
    }
    match draw.below(7) {
        0 => words.swap(at, other),
        1 => words.insert(other, words[at]),
        2 => _ = words.remove(at),
        3 | 4 => words[at] = words[other],
        // A part of the text once more: brackets in brackets, lists in lists.
        5 => {
            let end = (at + 1 + draw.below(8)).min(words.len());
            let part = words[at..end].repeat(1 + draw.below(3));
            words.splice(at..at, part);
        }
        _ => words[at] = draw.of(known).copied().unwrap_or(words[other]),
    }
    words.concat()
}

/// Numbers, words, runs of blanks, and every other character by itself.
fn split(text: &str) -> Vec<&str> {
    let kind = |c: char| match c {
        _ if c.is_ascii_digit() => 0,
        _ if c.is_alphanumeric() || c == '_' => 1,
        _ if c.is_whitespace() => 2,
        _ => 3,
    };
    let mut words = Vec::new();
    let mut start = 0;
    let mut last = None;
    for (at, c) in text.char_indices() {
        let now = kind(c);
        // Digits go on with a word that they do not begin, as in `f32`.
        let goes_on = last.is_some_and(|last| last == now && now != 3 || last == 1 && now == 0);
        if last.is_some() && !goes_on {
            words.push(&text[start..at]);
            start = at;
        }
        last = if goes_on { last } else { Some(now) };
    }
    words.push(&text[start..]);
    words
}
