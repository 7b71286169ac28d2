//! What generated PTX must not contain.

/// Everything in a PTX module that must not be there, one line each: memory of a thread beside its registers, calls, and
/// arrays in shared memory that vectors cannot be read from.
pub fn lint(ptx: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in ptx.lines().enumerate() {
        let line = line.trim();
        let problem = if line.starts_with(".local") || line.contains("st.local") || line.contains("ld.local")
        {
            "memory of one thread"
        } else if line.contains("__nv_") || line.starts_with(".extern .func") || line.starts_with("call") {
            "a call"
        } else if line.contains(".shared .align") && alignment(line) < 16 {
            "shared memory that no vector can be read from"
        } else {
            continue;
        };
        found.push(format!("line {}: {problem}: {line}", number + 1));
    }
    found
}

/// The number behind `.align`.
fn alignment(line: &str) -> usize {
    let number = line.split(".align").nth(1).and_then(|rest| rest.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::lint;

    #[test]
    fn what_must_not_be_there_is_found() {
        assert_eq!(lint(".shared .align 128 .b8 shared0[32];\nld.global.f32 %f1, [%rd1];"), [""; 0]);
        let bad = ".local .align 4 .b8 a[4];\n.shared .align 4 .b8 s[4];\ncall.uni (r), __nv_expf, (x);";
        let found = lint(bad);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[1].starts_with("line 2: shared memory that no vector can be read from"));
    }
}
