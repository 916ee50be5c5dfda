//! The built-in models on libtorch.
//!
//! Tensors, first parameters and dropout are those of the layers of our own, so that both train alike, and a checkpoint of
//! one goes on with the other.
//!
//! With mixed precision products, convolutions and attention take copies in 16 bits of what they are given, as PyTorch's
//! autocast has it, and what comes out stays in 16 bits until something else takes it. Their gradients come back through the
//! copies, so that those of parameters are f32.

use super::build::layers;
use super::{Model, Tensor};
use crate::Error;
use crate::adapter::tch::{Tch, device, tokens, values};
use crate::data::{Batch, Dataset, Sample};
use crate::layer::activation::Dropout;
use ::tch::{Device, Kind, TchError, Tensor as Values};
use phalanx_core::spec::{Activation, CnnSpec, ModelSpec, Norm, Precision, TrainSpec, TransformerSpec};
use std::collections::BTreeMap;

type Result<T> = std::result::Result<T, TchError>;

/// The norms' own, as in the layers.
const EPS: f64 = 1e-5;

/// The model for this data, and its name in checkpoints, which is that of the layers.
pub(crate) fn build(
    train: &TrainSpec,
    data: &Dataset,
) -> std::result::Result<(String, Box<dyn Model>), Error> {
    let device = device()?;
    let (name, layers) = layers(train, data)?;
    let variable = |tensor: &Tensor| {
        let shape: Vec<i64> = tensor.shape.iter().map(|&size| size as i64).collect();
        let values = Values::f_from_slice(&layers.parameters()[tensor.range.clone()])?;
        Ok(values.f_view(&shape[..])?.f_to_device(device)?.set_requires_grad(true))
    };
    let variables: Result<Vec<Values>> = layers.tensors().iter().map(variable).collect();
    let variables = variables.map_err(|error| Error::Model(error.to_string()))?;
    let names = layers.tensors().iter().map(|tensor| tensor.name.clone());
    let named: Vec<(String, Values)> = names.zip(variables).collect();
    let own = named.iter().map(|(name, variable)| (name.clone(), variable.shallow_clone())).collect();
    let kind = match train.precision {
        Precision::F32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    };
    let net = Net { own, device, kind, sample: data.sample };
    let model = train.model.clone();
    Ok((name, Box::new(Tch::new(named, data, move |batch| net.outputs(&model, batch))?)))
}

/// The variables by name, and where they are.
struct Net {
    own: BTreeMap<String, Values>,
    device: Device,
    /// What products are computed in.
    kind: Kind,
    sample: Sample,
}

impl Net {
    fn outputs(&self, model: &ModelSpec, batch: &Batch) -> Result<Values> {
        let outputs = match model {
            ModelSpec::Mlp { activation, dropout, .. } => {
                self.stack(values(batch, self.device)?, 0, *activation, *dropout, batch)
            }
            ModelSpec::Cnn(spec) => self.cnn(spec, batch),
            ModelSpec::Transformer(spec) => self.transformer(spec, batch),
            ModelSpec::Linear | ModelSpec::Custom => {
                self.stack(values(batch, self.device)?, 0, Activation::Relu, 0.0, batch)
            }
        };
        wide(&outputs?)
    }

    /// A copy for products, where they are computed in fewer bits.
    fn narrow(&self, values: &Values) -> Result<Values> {
        values.f_to_kind(self.kind)
    }

    fn part(&self, name: &str) -> Result<Values> {
        self.narrow(&self.own[name])
    }

    fn affine(&self, input: &Values, name: &str) -> Result<Values> {
        let (weight, bias) = (self.part(&format!("{name}.weight"))?, self.part(&format!("{name}.bias"))?);
        self.narrow(input)?.f_linear(&weight, Some(&bias))
    }

    /// Affine maps from `module` on, with an activation and dropout between them.
    fn stack(
        &self,
        mut input: Values,
        module: usize,
        activation: Activation,
        dropout: f64,
        batch: &Batch,
    ) -> Result<Values> {
        for at in 0.. {
            let module = module + 2 * at;
            input = self.affine(&input, &module.to_string())?;
            if !self.own.contains_key(&format!("{}.weight", module + 2)) {
                break;
            }
            input = self.dropout(activate(&input, activation)?, dropout, batch, at as u32)?;
        }
        Ok(input)
    }

    /// Leaves out what the layers of our own leave out.
    fn dropout(&self, input: Values, share: f64, batch: &Batch, place: u32) -> Result<Values> {
        if share == 0.0 || batch.noise.is_empty() {
            return Ok(input);
        }
        let mut mask = vec![1.0f32; input.numel()];
        Dropout::new(share).apply(&mut mask, &batch.noise, place);
        input.f_mul(&Values::f_from_slice(&mask)?.f_view_as(&input)?.f_to_device(self.device)?)
    }

    fn cnn(&self, spec: &CnnSpec, batch: &Batch) -> Result<Values> {
        let Sample::Image(shape) = self.sample else { unreachable!("a cnn was built for images") };
        let [channels, height, width] = shape.map(|size| size as i64);
        let mut map = values(batch, self.device)?.f_view([-1, channels, height, width])?;
        let mut module = 0;
        for _ in &spec.channels {
            let part = |name: &str| self.part(&format!("{module}.{name}"));
            let (weight, bias) = (part("weight")?, part("bias")?);
            map = self.narrow(&map)?.f_conv2d_padding(&weight, Some(&bias), [1, 1], "same", [1, 1], 1)?;
            if spec.norm == Norm::Group {
                let groups = crate::layer::norm::groups(map.size()[1] as usize) as i64;
                let part = |name: &str| &self.own[&format!("{}.{name}", module + 1)];
                map =
                    wide(&map)?.f_group_norm(groups, Some(part("weight")), Some(part("bias")), EPS, false)?;
            }
            map = activate(&map, spec.activation)?;
            let pool = i64::from(spec.pool);
            if pool > 1 {
                map = map.f_max_pool2d([pool, pool], [pool, pool], [0, 0], [1, 1], false)?;
            }
            module += 2 + usize::from(spec.norm == Norm::Group) + usize::from(pool > 1);
        }
        self.stack(map.f_flatten(1, -1)?, module + 1, spec.activation, spec.dropout, batch)
    }

    fn transformer(&self, spec: &TransformerSpec, batch: &Batch) -> Result<Values> {
        let width = i64::from(spec.width);
        let mut stream = self.embed(batch)?;
        let tokens = stream.size()[1];
        stream = self.dropout(stream, spec.dropout, batch, 0)?;
        let counted = self.counted(batch, tokens)?;
        for block in 0..spec.layers {
            let name = |part: &str| format!("blocks.{block}.{part}");
            let normed = self.layer_norm(&stream, &name("norm1"), width)?;
            let mixed = self.attention(spec, &normed, &name("attention"), counted.as_ref())?;
            stream = stream.f_add(&self.dropout(mixed, spec.dropout, batch, 1 + 2 * block)?)?;
            let normed = self.layer_norm(&stream, &name("norm2"), width)?;
            let hidden = activate(&self.affine(&normed, &name("feed_forward.up"))?, Activation::Gelu)?;
            let out = self.affine(&hidden, &name("feed_forward.down"))?;
            stream = stream.f_add(&self.dropout(out, spec.dropout, batch, 2 + 2 * block)?)?;
        }
        let last = self.layer_norm(&stream, "norm", width)?;
        if matches!(self.sample, Sample::Text { .. }) {
            if self.own.contains_key("head.weight") {
                return self.affine(&last, "head");
            }
            return self.narrow(&last)?.f_linear(&self.part("embedding.weight")?, None::<&Values>);
        }
        let mean = match counted {
            None => last.f_mean_dim(1, false, Kind::Float)?,
            Some(counted) => {
                let weights = counted.f_to_kind(Kind::Float)?.f_unsqueeze(2)?;
                let lengths = weights.f_sum_dim_intlist(1, false, Kind::Float)?;
                last.f_mul(&weights)?.f_sum_dim_intlist(1, false, Kind::Float)?.f_div(&lengths)?
            }
        };
        self.affine(&mean, "head")
    }

    /// Samples as rows of tokens of the transformer's width.
    fn embed(&self, batch: &Batch) -> Result<Values> {
        if let Sample::Features(_) | Sample::Image(_) = self.sample {
            let features = values(batch, self.device)?.f_unsqueeze(2)?;
            return features.f_mul(&self.own["features.weight"])?.f_add(&self.own["features.bias"]);
        }
        let tokens = tokens(batch, self.device)?;
        let places = self.own["position.weight"].f_narrow(0, 0, tokens.size()[1])?;
        Values::f_embedding(&self.own["embedding.weight"], &tokens, -1, false, false)?.f_add(&places)
    }

    /// Which tokens of each sample count, where not all do.
    fn counted(&self, batch: &Batch, tokens: i64) -> Result<Option<Values>> {
        if batch.lengths.is_empty() {
            return Ok(None);
        }
        let lengths: Vec<i64> = batch.lengths.iter().map(|&length| i64::from(length)).collect();
        let lengths = Values::f_from_slice(&lengths)?.f_unsqueeze(1)?.f_to_device(self.device)?;
        Ok(Some(Values::f_arange(tokens, (Kind::Int64, self.device))?.f_lt_tensor(&lengths)?))
    }

    fn layer_norm(&self, input: &Values, name: &str, width: i64) -> Result<Values> {
        let part = |part: &str| Some(&self.own[&format!("{name}.{part}")]);
        wide(input)?.f_layer_norm([width], part("weight"), part("bias"), EPS, false)
    }

    fn attention(
        &self,
        spec: &TransformerSpec,
        input: &Values,
        name: &str,
        counted: Option<&Values>,
    ) -> Result<Values> {
        let (width, heads) = (i64::from(spec.width), i64::from(spec.heads));
        let rows = self.affine(input, &format!("{name}.query_key_value"))?;
        // [samples, tokens, 3 × width] to three of [samples, heads, tokens, width of a head].
        let size = [input.size()[0], input.size()[1], heads, width / heads];
        let heads = rows.f_chunk(3, 2)?;
        let part = |at: usize| heads[at].f_view(size)?.f_transpose(1, 2);
        // Queries see the keys that count.
        let mask = counted.map(|counted| counted.f_unsqueeze(1)?.f_unsqueeze(1)).transpose()?;
        let causal = matches!(self.sample, Sample::Text { .. });
        let mixed = Values::f_scaled_dot_product_attention(
            &part(0)?,
            &part(1)?,
            &part(2)?,
            mask.as_ref(),
            0.0,
            causal,
            None,
            false,
        )?;
        let mixed = mixed.f_transpose(1, 2)?.f_reshape([size[0], size[1], width])?;
        self.affine(&mixed, &format!("{name}.out"))
    }
}

/// In f32, which norms and losses are computed in.
fn wide(values: &Values) -> Result<Values> {
    values.f_to_kind(Kind::Float)
}

fn activate(input: &Values, activation: Activation) -> Result<Values> {
    match activation {
        Activation::Relu => input.f_relu(),
        Activation::Gelu => input.f_gelu("none"),
        Activation::Tanh => input.f_tanh(),
    }
}
