use crate::error::{check, Error, Result, Status};
use crate::sys;
use std::mem::size_of;
use std::ptr::NonNull;

mirror! {
    /// Which tokens routing statistics are about.
    RoutingTokens: dsv2_routing_tokens {
        /// All tokens.
        All = DSV2_ROUTING_ALL,
        /// Those fed several at a time.
        Prompt = DSV2_ROUTING_PROMPT,
        /// Those fed one at a time.
        Generated = DSV2_ROUTING_GENERATED,
    }
}

/// A copy of the counts of a session's or model's use of experts.
pub struct Routing {
    ptr: NonNull<sys::dsv2_routing>,
}

// SAFETY: a dsv2_routing belongs to whoever holds it, on any thread.
unsafe impl Send for Routing {}

impl Drop for Routing {
    fn drop(&mut self) {
        // SAFETY: the pointer is ours and nothing can use it any more.
        unsafe { sys::dsv2_routing_free(self.ptr.as_ptr()) }
    }
}

/// What routing statistics are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct RoutingInfo {
    /// Tokens seen.
    pub n_tokens: u64,
    /// Layers of the model, dense ones included.
    pub num_hidden_layers: u32,
    /// Routed experts of a layer.
    pub n_routed_experts: u32,
    /// Experts chosen for a token.
    pub num_experts_per_tok: u32,
    /// Groups (devices) of experts.
    pub n_group: u32,
    /// Groups kept for a token.
    pub topk_group: u32,
}

/// One expert of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ExpertLoad {
    /// Tokens that chose it.
    pub chosen: u64,
    /// Sum of the gate values with which its output was weighted.
    pub gate_sum: f64,
    /// Sum of its affinities over all tokens, chosen or not.
    pub affinity_sum: f64,
}

/// Measures of one layer's balance; equation numbers of arXiv 2405.04434, losses with the factor 1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Balance {
    /// Eqs. 23-25.
    pub expert_balance_loss: f64,
    /// Eqs. 26-28.
    pub device_balance_loss: f64,
    /// Eqs. 29-31.
    pub communication_balance_loss: f64,
    /// Load of the busiest expert over the mean load.
    pub max_over_mean: f64,
    /// Of the shares of load, in nats.
    pub entropy: f64,
    /// 1 is even.
    pub jain_index: f64,
    /// Experts that no token chose.
    pub never_used: u32,
    /// Share of (token, expert) pairs over capacity at capacity factor 1.
    pub dropped_share: f64,
    /// Most devices that any token reached.
    pub max_devices_reached: u32,
    /// Devices that a token reached on average.
    pub mean_devices_reached: f64,
}

/// One layer's statistics.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LayerRouting {
    /// The layer's number in the model.
    pub layer: u32,
    /// One entry per routed expert.
    pub experts: Vec<ExpertLoad>,
    /// For the model's own groups.
    pub balance: Balance,
}

/// One token's way through one layer's router.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RoutingEvent<'a> {
    /// Of the token in its session.
    pub position: usize,
    /// The layer's number in the model.
    pub layer: u32,
    /// Chosen, by falling score.
    pub experts: &'a [u32],
    /// As multiplied into each expert's output.
    pub gates: &'a [f32],
    /// Bit g set: group g was among those kept.
    pub groups: u64,
}

impl Routing {
    pub(crate) fn own(ptr: *mut sys::dsv2_routing) -> Routing {
        Routing { ptr: NonNull::new(ptr).expect("the library gave counts") }
    }

    /// What the counts are about.
    pub fn info(&self) -> Result<RoutingInfo> {
        // SAFETY: zero is a valid value of every field.
        let info = unsafe {
            let mut info: sys::dsv2_routing_info = std::mem::zeroed();
            info.struct_size = size_of::<sys::dsv2_routing_info>();
            check(sys::dsv2_routing_get_info(self.ptr.as_ptr(), &mut info))?;
            info
        };
        Ok(RoutingInfo {
            n_tokens: info.n_tokens,
            num_hidden_layers: info.num_hidden_layers,
            n_routed_experts: info.n_routed_experts,
            num_experts_per_tok: info.num_experts_per_tok,
            n_group: info.n_group,
            topk_group: info.topk_group,
        })
    }

    /// One entry per routed expert of a layer; an error of [`Status::Argument`] if the layer is dense.
    pub fn experts(&self, layer: u32) -> Result<Vec<ExpertLoad>> {
        let n = self.info()?.n_routed_experts as usize;
        let mut loads = vec![sys::dsv2_expert_load { chosen: 0, gate_sum: 0.0, affinity_sum: 0.0 }; n];
        // SAFETY: there is room for n_routed_experts entries.
        check(unsafe { sys::dsv2_routing_experts(self.ptr.as_ptr(), layer, loads.as_mut_ptr()) })?;
        let load =
            |raw: &sys::dsv2_expert_load| ExpertLoad { chosen: raw.chosen, gate_sum: raw.gate_sum, affinity_sum: raw.affinity_sum };
        Ok(loads.iter().map(load).collect())
    }

    /// Measures one layer's balance over `n_devices` devices that hold equal runs of experts, at most `max_devices` for a
    /// token. 0: the model's own groups.
    pub fn balance(&self, layer: u32, n_devices: u32, max_devices: u32) -> Result<Balance> {
        // SAFETY: zero is a valid value of every field.
        let raw = unsafe {
            let mut raw: sys::dsv2_routing_balance = std::mem::zeroed();
            raw.struct_size = size_of::<sys::dsv2_routing_balance>();
            check(sys::dsv2_routing_measure(self.ptr.as_ptr(), layer, n_devices, max_devices, &mut raw))?;
            raw
        };
        Ok(Balance {
            expert_balance_loss: raw.expert_balance_loss,
            device_balance_loss: raw.device_balance_loss,
            communication_balance_loss: raw.communication_balance_loss,
            max_over_mean: raw.max_over_mean,
            entropy: raw.entropy,
            jain_index: raw.jain_index,
            never_used: raw.never_used,
            dropped_share: raw.dropped_share,
            max_devices_reached: raw.max_devices_reached,
            mean_devices_reached: raw.mean_devices_reached,
        })
    }

    /// The statistics of every layer that has routed experts.
    pub fn layers(&self) -> Result<Vec<LayerRouting>> {
        let mut layers = Vec::new();
        for layer in 0..self.info()?.num_hidden_layers {
            match self.experts(layer) {
                Ok(experts) => layers.push(LayerRouting { layer, experts, balance: self.balance(layer, 0, 0)? }),
                Err(error) if error.status() == Status::Argument => continue, // a dense layer
                Err(error) => return Err(error),
            }
        }
        Ok(layers)
    }

    /// Adds the counts of `other`, as if one run had seen the tokens of both.
    pub fn merge(&mut self, other: &Routing) -> Result<()> {
        // SAFETY: both are open, and distinct since one is borrowed mutably.
        check(unsafe { sys::dsv2_routing_merge(self.ptr.as_ptr(), other.ptr.as_ptr()) })
    }
}

impl std::fmt::Debug for Routing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let info: std::result::Result<RoutingInfo, Error> = self.info();
        f.debug_struct("Routing").field("info", &info).finish()
    }
}
