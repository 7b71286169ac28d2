//! Ctrl-C ends every command at once, whatever it is at; what was learned is kept.

use std::time::{Duration, Instant};

use margay_tensor::{DType, Tensor};

use crate::place::{Place, images, interrupt};

/// Longer than a program needs that has little to write, on a machine that is busy.
const SOON: Duration = Duration::from_secs(5);

/// Runs a command, presses Ctrl-C after some time, and expects it to end soon. The exit code, if it was still running.
fn interrupted(place: &Place, words: &str, after: Duration) -> Option<Option<i32>> {
    let mut child = place.start(words);
    std::thread::sleep(after);
    if child.try_wait().unwrap().is_some() {
        return None;
    }
    let begin = Instant::now();
    interrupt(&child);
    let status = child.wait_with_output().unwrap().status;
    let took = begin.elapsed();
    assert!(took < SOON, "{words}: {took:?} after an interrupt at {after:?}");
    Some(status.code())
}

const MOMENTS: [u64; 4] = [100, 400, 900, 2000];

/// Samples enough for one evaluation of the demo network to take seconds.
fn place() -> Place {
    let place = Place::new();
    let label = Tensor::zeros(DType::I64, &[6000]).unwrap();
    place.write_npz("data.npz", &[("image", images(6000, 3)), ("label", label)]);
    place.done(
        "compile model.onnx --calibrate samples.npz --budget-bytes 60% --target-cpu portable -o s.margay",
    );
    place
}

#[test]
fn commands_that_keep_nothing_end_at_once() {
    let place = place();
    let mut running = 0;
    for command in [
        "compile model.onnx --data data.npz --max-error 0.1 -o o.margay",
        "explain model.onnx --data data.npz --max-error 0.1",
        "pareto model.onnx --data data.npz --refit",
        "sensitivity model.onnx --data data.npz",
        "evaluate model.onnx s.margay --data data.npz --labels label",
        "compare model.onnx s.margay --data data.npz",
        "bench model.onnx s.margay --data data.npz --rounds 1000",
        "measure-machine -o machine.toml",
    ] {
        for after in MOMENTS {
            running += usize::from(interrupted(&place, command, Duration::from_millis(after)).is_some());
        }
    }
    assert!(running > 8, "{running} of the commands were still running");
    let files = place.files();
    assert_eq!(files, ["data.npz", "in.npz", "model.onnx", "s.margay", "samples.npz"]);
}

#[test]
fn learning_ends_soon_wherever_it_is() {
    let place = place();
    let train = "train model.onnx --data data.npz --labels label --held-out 0.5 --batch 16 --steps 100000 \
                 --evaluations 50000 --export t.onnx -o t.margay --threads 1";
    let recover = "recover s.margay --teacher model.onnx --data data.npz --steps 100000 --evaluations 50000 \
                   --max-seconds 600 -o r.margay --export r.onnx --threads 1";
    let (mut kept, mut running) = (0, 0);
    for (command, written) in [(train, ["t.onnx", "t.margay"]), (recover, ["r.onnx", "r.margay"])] {
        for after in MOMENTS.into_iter().chain([4000, 7000]) {
            let Some(code) = interrupted(&place, command, Duration::from_millis(after)) else { continue };
            running += 1;
            let there = written.map(|name| place.path(name).exists());
            match code {
                Some(0) => {
                    kept += 1;
                    assert_eq!(there, [true; 2], "{command}");
                    written.iter().for_each(|name| std::fs::remove_file(place.path(name)).unwrap());
                }
                // Killed by the signal, or ended where nothing was learned.
                None | Some(130) => assert_eq!(there, [false; 2], "{command}"),
                other => panic!("{command}: {other:?}"),
            }
        }
    }
    assert!(running >= 10 && kept >= 2, "{kept} of {running} kept what was learned");
}
