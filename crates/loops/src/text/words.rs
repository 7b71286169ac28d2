//! Words of text forms: names, lists, and the values of fields. Graphs and programs are written with the same ones.

/// A name as text forms write it: bare when it is made of word characters, else quoted.
pub fn quoted(name: &str) -> String {
    let bare = !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-'))
        && !name.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    if bare { name.to_string() } else { format!("{name:?}") }
}

/// Splits off a leading name, bare or quoted.
pub fn take_name(text: &str) -> Result<(String, &str), String> {
    if let Some(rest) = text.strip_prefix('"') {
        let mut name = String::new();
        let mut chars = rest.char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => return Ok((name, &rest[i + 1..])),
                '\\' => match chars.next() {
                    Some((_, 'n')) => name.push('\n'),
                    Some((_, 't')) => name.push('\t'),
                    Some((_, 'r')) => name.push('\r'),
                    Some((_, '0')) => name.push('\0'),
                    Some((i, 'u')) => {
                        let hex = rest[i + 1..].strip_prefix('{').and_then(|r| r.split_once('}'));
                        let (hex, _) = hex.ok_or("unfinished escape in a name")?;
                        let code = u32::from_str_radix(hex, 16).ok().and_then(char::from_u32);
                        name.push(code.ok_or("unknown escape in a name")?);
                        chars.by_ref().take(hex.chars().count() + 2).for_each(drop);
                    }
                    Some((_, c)) => name.push(c),
                    None => break,
                },
                c => name.push(c),
            }
        }
        return Err("unfinished name".into());
    }
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')))
        .unwrap_or(text.len());
    if end == 0 {
        return Err(format!("expected a name at `{text}`"));
    }
    Ok((text[..end].to_string(), &text[end..]))
}

/// Where `pattern` begins for the first time outside quotes.
pub fn find_unquoted(text: &str, pattern: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (i, c) in text.char_indices() {
        if quoted {
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if text[i..].starts_with(pattern) {
            return Some(i);
        } else {
            quoted = c == '"';
        }
    }
    None
}

/// Splits at the first `pattern` outside quotes.
pub fn split_unquoted<'a>(text: &'a str, pattern: &str) -> Option<(&'a str, &'a str)> {
    find_unquoted(text, pattern).map(|at| (&text[..at], &text[at + pattern.len()..]))
}

/// Splits at commas outside brackets, parentheses, braces and quotes; trims; nothing for an empty text.
pub fn split_top(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start, mut quoted, mut escaped) = (Vec::new(), 0i32, 0, false, false);
    for (i, c) in text.char_indices() {
        if quoted {
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '"' => quoted = true,
            '[' | '(' | '{' => depth += 1,
            ']' | ')' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    let last = text[start..].trim();
    if !(parts.is_empty() && last.is_empty()) {
        parts.push(last);
    }
    parts
}
