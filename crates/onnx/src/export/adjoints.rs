//! Operators of backward passes: derivatives of attention, windows side by side, their sum, and sums at places that data
//! names.

use margay_ir::ops::{AttentionGradient, Col2im, Im2col, ScatterAdd};
use margay_ir::{NodeId, Payload, Value};
use margay_tensor::{DType, Dim, Tensor};

use super::Exporter;
use super::operators::{axis, ints, pads};
use super::places::since;
use crate::{Attribute, OnnxError, element_number};

impl Exporter<'_> {
    /// P = exp(scores - L), dS = P ∘ (dO Vᵀ - Δ), and the derivatives from these, with the whole matrix of scores.
    pub(super) fn attention_gradient(
        &mut self,
        n: NodeId,
        x: &[&str],
        dtype: DType,
        op: &AttentionGradient,
    ) -> Result<Vec<String>, OnnxError> {
        let g = self.g;
        let shape = |slot: usize| g.ty(g.inputs_of(n)[slot]).shape.clone();
        let (queries, keys, values) = (shape(0), shape(1), shape(2));
        let shared = self.shared_heads(x, [&queries, &keys, &values])?;
        let (mask, lengths) = (x.get(6).copied(), [&queries[2], &keys[2]]);
        let scale = op.scale.get();
        let scores = self.scores([x[0], &shared[0]], mask, scale, op.causal, lengths, dtype)?;
        let last = self.integers(&[3])?;
        let logs = self.emit("Unsqueeze", "logs", &[x[3], &last], vec![]);
        let centres = self.emit("Unsqueeze", "centres", &[x[4], &last], vec![]);
        // A pair that is not seen has no part, whatever its row holds.
        let unseen = match mask.is_some() || op.causal {
            true => {
                let (never, zero) = (self.number(dtype, f64::NEG_INFINITY), self.number(dtype, 0.0));
                Some([self.emit("Equal", "unseen", &[&scores, &never], vec![]), zero])
            }
            false => None,
        };
        let only_seen = |e: &mut Self, part: &str, x: String| match &unseen {
            Some([unseen, zero]) => e.emit("Where", part, &[unseen, zero, &x], vec![]),
            None => x,
        };
        let weights = self.emit("Sub", "Sub", &[&scores, &logs], vec![]);
        let weights = self.emit("Exp", "Exp", &[&weights], vec![]);
        let weights = only_seen(self, "weights", weights);
        let swap = || vec![("perm", ints(&[0, 1, 3, 2]))];
        let transposed = self.emit("Transpose", "values_transposed", &[&shared[1]], swap());
        let products = self.emit("MatMul", "products", &[x[5], &transposed], vec![]);
        let centred = self.emit("Sub", "centred", &[&products, &centres], vec![]);
        let d_scores = self.emit("Mul", "d_scores", &[&weights, &centred], vec![]);
        let mut d_scores = only_seen(self, "d_seen", d_scores);
        if scale != 1.0 {
            let scale = self.number(dtype, scale);
            d_scores = self.emit("Mul", "d_scaled", &[&d_scores, &scale], vec![]);
        }
        let mut others = Vec::new();
        for (rows, with, part, to) in
            [(&d_scores, x[0], "d_keys", &keys), (&weights, x[5], "d_values", &values)]
        {
            let transposed = self.emit("Transpose", part, &[rows], swap());
            let mut sum = self.emit("MatMul", part, &[&transposed, with], vec![]);
            if let Some(shared) = queries[1].floor_div(&to[1]).filter(|_| queries[1] != to[1]) {
                let from = [&to[..1], &queries[1..2], &to[2..]].concat();
                let split = [&to[..2], &[shared], &to[2..]].concat();
                sum = self.reshape(part, &sum, &from, &split)?;
                sum = self.reduction("ReduceSum", part, &sum, &[2], false)?;
            }
            others.push(sum);
        }
        let first = self.emit("MatMul", "", &[&d_scores, &shared[0]], vec![]);
        Ok([first].into_iter().chain(others).collect())
    }

    /// Windows of an image: a look-up along each spatial axis by a table of positions, tap by place.
    pub(super) fn im2col(
        &mut self,
        n: NodeId,
        x: &str,
        dtype: DType,
        op: &Im2col,
    ) -> Result<String, OnnxError> {
        let spatial = op.kernel.len();
        let mut image = x.to_owned();
        if op.pads_before.iter().chain(&op.pads_after).any(|&p| p > 0) {
            let channels = vec![0; 2];
            let list = [&channels, &op.pads_before, &channels, &op.pads_after];
            let list: Vec<i64> = list.into_iter().flatten().map(|&p| p as i64).collect();
            let (list, value) = (self.integers(&list)?, self.number(dtype, op.value.get()));
            image = self.emit("Pad", "padded", &[x, &list, &value], vec![]);
        }
        let places = self.g.ty(n.into()).shape[2 + spatial..].to_vec();
        for i in (0..spatial).rev() {
            let table = self.positions_of(&places[i], op.kernel[i], op.strides[i], op.dilations[i])?;
            let part = if spatial == 1 { "" } else { "taps" };
            image = self.emit("Gather", part, &[&image, &table], axis(2 + i));
        }
        if spatial == 1 {
            return Ok(image);
        }
        // Taps and places of one axis lie side by side.
        let taps = (0..spatial).map(|i| 2 + 2 * i);
        let perm: Vec<usize> = [0, 1].into_iter().chain(taps.clone()).chain(taps.map(|t| t + 1)).collect();
        Ok(self.emit("Transpose", "", &[&image], vec![("perm", ints(&perm))]))
    }

    /// The positions of every tap at every place along an axis, `[taps, places]`.
    fn positions_of(
        &mut self,
        places: &Dim,
        taps: usize,
        stride: usize,
        dilation: usize,
    ) -> Result<String, OnnxError> {
        if let Some(places) = places.as_extent() {
            let position = |at: usize| (at % places * stride + at / places * dilation) as i64;
            let table: Vec<i64> = (0..taps * places).map(position).collect();
            let table = Tensor::from_slice(&[taps, places], &table);
            let table = table.map_err(|e| self.refusal(e.to_string()))?;
            return Ok(self.initializer(&Payload::new(table), "positions"));
        }
        let starts = self.positions("places", &Dim::from(0usize), places)?;
        let stride = self.integers(&[stride as i64])?;
        let starts = self.emit("Mul", "starts", &[&starts, &stride], vec![]);
        let offsets: Vec<i64> = (0..taps).map(|t| (t * dilation) as i64).collect();
        let offsets = Tensor::from_slice(&[taps, 1], &offsets);
        let offsets = offsets.map_err(|e| self.refusal(e.to_string()))?;
        let offsets = self.initializer(&Payload::new(offsets), "offsets");
        Ok(self.emit("Add", "positions", &[&starts, &offsets], vec![]))
    }

    /// The sum of windows: a transposed convolution of the taps as channels, each with a 1 at its own place.
    pub(super) fn col2im(&mut self, n: NodeId, x: &str, op: &Col2im) -> Result<String, OnnxError> {
        let g = self.g;
        let (from, to) = (g.ty(g.inputs_of(n)[0]), &g.ty(n.into()).shape);
        let p = &op.im2col;
        let spatial = p.kernel.len();
        let places = &from.shape[2 + spatial..];
        let taps: usize = p.kernel.iter().product();
        let images = &from.shape[0] * &from.shape[1];
        let channels = [&[images.clone(), Dim::from(taps)], places].concat();
        let columns = self.reshape("columns", x, &from.shape, &channels)?;
        let shape = [&[taps, 1], p.kernel.as_slice()].concat();
        let own: Vec<f32> = (0..taps * taps).map(|at| f32::from(u8::from(at / taps == at % taps))).collect();
        let own = Tensor::from_slice(&shape, &own).map_err(|e| self.refusal(e.to_string()))?;
        let mut kernel = self.initializer(&Payload::new(own), "taps");
        if from.dtype != DType::F32 {
            let to = Attribute::Int(element_number(from.dtype));
            kernel = self.emit("Cast", "taps", &[&kernel], vec![("to", to)]);
        }
        let mut rest = Vec::new();
        for (i, place) in places.iter().enumerate() {
            let padding = (p.pads_before[i] + p.pads_after[i]) as i64;
            let reach = (p.dilations[i] * (p.kernel[i] - 1) + 1) as i64;
            let last = &Dim::from(p.strides[i]) * &(place - &Dim::from(1usize));
            let made = &last + &Dim::from(reach - padding);
            let missing = (&op.size[i] - &made).as_extent().ok_or_else(|| {
                let (step, size) = (p.strides[i], &op.size[i]);
                self.refusal(format!("a sum of windows by steps of {step} to an open extent `{size}`"))
            })?;
            rest.push(missing);
        }
        let attributes = vec![
            ("kernel_shape", ints(&p.kernel)),
            ("strides", ints(&p.strides)),
            ("pads", pads(&p.pads_before, &p.pads_after)),
            ("dilations", ints(&p.dilations)),
            ("output_padding", ints(&rest)),
        ];
        let sums = self.emit("ConvTranspose", "sums", &[&columns, &kernel], attributes);
        let flat = [&[images, Dim::from(1usize)], op.size.as_slice()].concat();
        self.reshape("", &sums, &flat, to)
    }

    /// Sums at the places that indices name, which ONNX counts along the first axis.
    pub(super) fn scatter_add(
        &mut self,
        n: NodeId,
        x: &[&str],
        op: &ScatterAdd,
    ) -> Result<String, OnnxError> {
        self.needs(since(self.g, n), "a sum by indices")?;
        let g = self.g;
        let inputs = g.inputs_of(n);
        let (updates, at) = (g.ty(inputs[0]), g.ty(inputs[1]));
        let inner = op.axis + op.indices;
        let turn = |e: &mut Self, part: &str, x: &str, perm: Vec<usize>| match perm.is_sorted() {
            true => x.to_owned(),
            false => e.emit("Transpose", part, &[x], vec![("perm", ints(&perm))]),
        };
        let places_first = (op.axis..inner).chain(0..op.axis).chain(inner..updates.ndim());
        let rows = turn(self, "rows", x[0], places_first.collect());
        let mut places = x[1].to_owned();
        if at.dtype != DType::I64 {
            let to = Attribute::Int(element_number(DType::I64));
            places = self.emit("Cast", "places", &[&places], vec![("to", to)]);
        }
        let axes = self.integers(&[op.indices as i64])?;
        let places = self.emit("Unsqueeze", "places", &[&places, &axes], vec![]);
        let result = &g.ty(Value::from(n)).shape;
        let mut shape = result.clone();
        let extent = shape.remove(op.axis);
        shape.insert(0, extent);
        let zero = self.number(updates.dtype, 0.0);
        let shape = self.extents(&shape, "shape")?;
        let zeros = self.emit("Expand", "zeros", &[&zero, &shape], vec![]);
        let add = vec![("reduction", Attribute::String("add".to_owned()))];
        let back: Vec<usize> = (1..=op.axis).chain([0]).chain(op.axis + 1..result.len()).collect();
        let part = if back.is_sorted() { "" } else { "sums" };
        let sums = self.emit("ScatterND", part, &[&zeros, &places, &rows], add);
        Ok(turn(self, "", &sums, back))
    }
}
