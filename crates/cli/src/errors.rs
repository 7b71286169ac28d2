//! Errors of outputs in words and tables, the same in every command.

use margay::ErrorMeasure;

use crate::table::{Table, significant};

/// `relative error 0.106, 0.142 about the mean, cosine 0.99437`.
pub(crate) fn words(e: &ErrorMeasure) -> String {
    let centred = e.centred_l2.map_or(String::new(), |c| format!("{} about the mean, ", significant(c)));
    format!("relative error {}, {centred}cosine {:.5}", significant(e.relative_l2), e.cosine)
}

/// A line on what further samples err by; empty with too few samples.
pub(crate) fn bounds(e: &ErrorMeasure) -> String {
    if let Some(b) = &e.quantile {
        let (percent, error) = (b.level * 100.0, significant(b.relative_l2));
        return format!("relative error of {percent:.1}% of the samples, each by itself, at most {error}\n");
    }
    let each =
        e.bounds.iter().map(|b| format!("{} with {:.0}%", significant(b.relative_l2), b.level * 100.0));
    match each.collect::<Vec<_>>().join(", ") {
        list if list.is_empty() => list,
        list => format!("relative error of a further sample like these, at most: {list} probability\n"),
    }
}

/// What does not count, if anything: `` ; padding, by `attention_mask`, does not count ``.
pub(crate) fn uncounted(e: &ErrorMeasure) -> String {
    let padding = e.mask.as_ref().map_or(String::new(), |m| format!("; padding, by `{m}`, does not count"));
    match e.only.as_slice() {
        [] => padding,
        names => format!("{padding}; only `{}` counts", names.join("` and `")),
    }
}

/// The error of each output; empty where one line has said all of it.
pub(crate) fn outputs(e: &ErrorMeasure) -> Table {
    let mut table = Table::new(&[
        "output",
        ">relative error",
        ">about the mean",
        ">cosine",
        ">error of means",
        ">cosine of means",
    ]);
    if e.outputs.len() < 2 && e.outputs.iter().all(|o| o.pooled.is_none()) {
        return table;
    }
    for o in &e.outputs {
        let pooled = o.pooled.as_ref();
        table.row([
            o.name.clone(),
            significant(o.relative_l2),
            o.centred_l2.map_or("-".into(), significant),
            format!("{:.5}", o.cosine),
            pooled.map_or("-".into(), |p| significant(p.relative_l2)),
            pooled.map_or("-".into(), |p| format!("{:.5}", p.cosine)),
        ]);
    }
    table
}
