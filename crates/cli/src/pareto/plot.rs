//! A front as a picture: what is left of a resource against the error.

use margay::{Front, FrontPoint, Resource};
use plotters::prelude::*;

use crate::error::Failure;

/// Width and height in pixels.
const SIZE: (u32, u32) = (720, 440);

/// The measured errors with a line through those that no other point beats, and the predicted ones.
pub(super) fn svg(front: &Front, by: Resource) -> Result<String, Failure> {
    let mut text = String::new();
    draw(front, by, &mut text).map_err(|e| Failure::usage(format!("the front cannot be drawn: {e}")))?;
    Ok(text)
}

fn draw(front: &Front, by: Resource, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let (words, dense) = match by {
        Resource::Bytes => ("bytes of the weights", front.dense.bytes as f64),
        Resource::Flops => ("operations", front.dense.flops as f64),
        Resource::Seconds => ("predicted time", front.dense.predicted_ms * 1e-3),
    };
    let share = |p: &FrontPoint| 100.0 * p.of(by) / dense.max(f64::MIN_POSITIVE);
    let measured: Vec<(f64, f64)> = front.points.iter().map(|p| (share(p), p.held_out.relative_l2)).collect();
    let predicted: Vec<(f64, f64)> = front.points.iter().map(|p| (share(p), p.predicted_error)).collect();
    let best: Vec<(f64, f64)> = std::iter::once((100.0, 0.0))
        .chain(front.points.iter().filter(|p| !p.dominated).map(|p| (share(p), p.held_out.relative_l2)))
        .collect();
    let largest =
        |points: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| points.iter().map(of).fold(0.0, f64::max);
    let top = 1.05 * largest(&measured, |p| p.1).max(largest(&predicted, |p| p.1)).max(1e-6);
    let right = largest(&measured, |p| p.0).max(100.0);

    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{}, {}", front.model, front.target_cpu), ("sans-serif", 16))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc(format!("{words}, % of the dense model"))
        .y_desc("relative L2 error of the outputs")
        .light_line_style(WHITE)
        .draw()?;
    let (blue, grey) = (RGBColor(31, 97, 171), RGBColor(140, 140, 140));
    chart.draw_series(LineSeries::new(best, blue.stroke_width(2)))?;
    chart
        .draw_series(measured.iter().map(|p| Circle::new(*p, 4, blue.filled())))?
        .label("held-out samples")
        .legend(move |(x, y)| Circle::new((x + 8, y), 4, blue.filled()));
    chart
        .draw_series(predicted.iter().map(|p| TriangleMarker::new(*p, 5, grey)))?
        .label("predicted")
        .legend(move |(x, y)| TriangleMarker::new((x + 8, y), 5, grey));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(grey)
        .draw()?;
    area.present()?;
    Ok(())
}
