//! The layout of the C headers, made by tests/abi/headers.py of the repository: do not edit.
#![allow(clippy::unnecessary_cast)]

use dsv2_sys::*;
use std::mem::{align_of, size_of, MaybeUninit};
use std::ptr::addr_of;

macro_rules! field {
    ($type:ty, $field:ident) => {{
        let value = MaybeUninit::<$type>::uninit();
        let start = value.as_ptr();
        // SAFETY: only addresses are taken.
        let field = unsafe { addr_of!((*start).$field) };
        fn size<T>(_: *const T) -> usize {
            size_of::<T>()
        }
        (field as usize - start as usize, size(field))
    }};
}

#[test]
fn structures_are_laid_out_as_in_c() {
    assert_eq!((size_of::<dsv2_allocator>(), align_of::<dsv2_allocator>()), (24, 8));
    assert_eq!(field!(dsv2_allocator, allocate), (0, 8));
    assert_eq!(field!(dsv2_allocator, release), (8, 8));
    assert_eq!(field!(dsv2_allocator, user), (16, 8));
    assert_eq!((size_of::<dsv2_model_options>(), align_of::<dsv2_model_options>()), (104, 8));
    assert_eq!(field!(dsv2_model_options, struct_size), (0, 8));
    assert_eq!(field!(dsv2_model_options, n_threads), (8, 4));
    assert_eq!(field!(dsv2_model_options, weight_type), (12, 4));
    assert_eq!(field!(dsv2_model_options, kernels), (16, 8));
    assert_eq!(field!(dsv2_model_options, cache_memory_limit), (24, 8));
    assert_eq!(field!(dsv2_model_options, progress), (32, 8));
    assert_eq!(field!(dsv2_model_options, progress_user), (40, 8));
    assert_eq!(field!(dsv2_model_options, log), (48, 8));
    assert_eq!(field!(dsv2_model_options, log_user), (56, 8));
    assert_eq!(field!(dsv2_model_options, loading), (64, 4));
    assert_eq!(field!(dsv2_model_options, lock), (68, 4));
    assert_eq!(field!(dsv2_model_options, insist), (72, 4));
    assert_eq!(field!(dsv2_model_options, allocator), (80, 24));
    assert_eq!((size_of::<dsv2_bytes_needed_info>(), align_of::<dsv2_bytes_needed_info>()), (40, 8));
    assert_eq!(field!(dsv2_bytes_needed_info, struct_size), (0, 8));
    assert_eq!(field!(dsv2_bytes_needed_info, bytes_copied), (8, 8));
    assert_eq!(field!(dsv2_bytes_needed_info, bytes_mapped), (16, 8));
    assert_eq!(field!(dsv2_bytes_needed_info, cache_bytes_per_token), (24, 8));
    assert_eq!(field!(dsv2_bytes_needed_info, memory_left), (32, 8));
    assert_eq!((size_of::<dsv2_model_info>(), align_of::<dsv2_model_info>()), (256, 8));
    assert_eq!(field!(dsv2_model_info, struct_size), (0, 8));
    assert_eq!(field!(dsv2_model_info, parameters), (8, 8));
    assert_eq!(field!(dsv2_model_info, parameters_activated), (16, 8));
    assert_eq!(field!(dsv2_model_info, weight_bytes), (24, 8));
    assert_eq!(field!(dsv2_model_info, bytes_copied), (32, 8));
    assert_eq!(field!(dsv2_model_info, weight_type), (40, 4));
    assert_eq!(field!(dsv2_model_info, vocab_size), (44, 4));
    assert_eq!(field!(dsv2_model_info, hidden_size), (48, 4));
    assert_eq!(field!(dsv2_model_info, intermediate_size), (52, 4));
    assert_eq!(field!(dsv2_model_info, moe_intermediate_size), (56, 4));
    assert_eq!(field!(dsv2_model_info, num_hidden_layers), (60, 4));
    assert_eq!(field!(dsv2_model_info, num_attention_heads), (64, 4));
    assert_eq!(field!(dsv2_model_info, n_shared_experts), (68, 4));
    assert_eq!(field!(dsv2_model_info, n_routed_experts), (72, 4));
    assert_eq!(field!(dsv2_model_info, num_experts_per_tok), (76, 4));
    assert_eq!(field!(dsv2_model_info, n_group), (80, 4));
    assert_eq!(field!(dsv2_model_info, topk_group), (84, 4));
    assert_eq!(field!(dsv2_model_info, first_k_dense_replace), (88, 4));
    assert_eq!(field!(dsv2_model_info, moe_layer_freq), (92, 4));
    assert_eq!(field!(dsv2_model_info, q_lora_rank), (96, 4));
    assert_eq!(field!(dsv2_model_info, kv_lora_rank), (100, 4));
    assert_eq!(field!(dsv2_model_info, qk_nope_head_dim), (104, 4));
    assert_eq!(field!(dsv2_model_info, qk_rope_head_dim), (108, 4));
    assert_eq!(field!(dsv2_model_info, v_head_dim), (112, 4));
    assert_eq!(field!(dsv2_model_info, max_position_embeddings), (116, 4));
    assert_eq!(field!(dsv2_model_info, n_threads), (120, 4));
    assert_eq!(field!(dsv2_model_info, bos_token_id), (124, 4));
    assert_eq!(field!(dsv2_model_info, eos_token_id), (128, 4));
    assert_eq!(field!(dsv2_model_info, architecture), (132, 32));
    assert_eq!(field!(dsv2_model_info, topk_method), (164, 32));
    assert_eq!(field!(dsv2_model_info, scoring_func), (196, 16));
    assert_eq!(field!(dsv2_model_info, container), (212, 16));
    assert_eq!(field!(dsv2_model_info, kernels), (228, 16));
    assert_eq!(field!(dsv2_model_info, fingerprint), (248, 8));
    assert_eq!((size_of::<dsv2_memory_info>(), align_of::<dsv2_memory_info>()), (40, 8));
    assert_eq!(field!(dsv2_memory_info, struct_size), (0, 8));
    assert_eq!(field!(dsv2_memory_info, pages_in_use), (8, 8));
    assert_eq!(field!(dsv2_memory_info, page_bytes_in_use), (16, 8));
    assert_eq!(field!(dsv2_memory_info, page_bytes_limit), (24, 8));
    assert_eq!(field!(dsv2_memory_info, scratch_bytes), (32, 8));
    assert_eq!((size_of::<dsv2_pack_options>(), align_of::<dsv2_pack_options>()), (32, 8));
    assert_eq!(field!(dsv2_pack_options, struct_size), (0, 8));
    assert_eq!(field!(dsv2_pack_options, weight_type), (8, 4));
    assert_eq!(field!(dsv2_pack_options, n_threads), (12, 4));
    assert_eq!(field!(dsv2_pack_options, progress), (16, 8));
    assert_eq!(field!(dsv2_pack_options, progress_user), (24, 8));
    assert_eq!((size_of::<dsv2_tokenizer_info>(), align_of::<dsv2_tokenizer_info>()), (56, 8));
    assert_eq!(field!(dsv2_tokenizer_info, struct_size), (0, 8));
    assert_eq!(field!(dsv2_tokenizer_info, vocab_size), (8, 4));
    assert_eq!(field!(dsv2_tokenizer_info, n_merges), (12, 4));
    assert_eq!(field!(dsv2_tokenizer_info, n_special), (16, 4));
    assert_eq!(field!(dsv2_tokenizer_info, bos_token_id), (20, 4));
    assert_eq!(field!(dsv2_tokenizer_info, eos_token_id), (24, 4));
    assert_eq!(field!(dsv2_tokenizer_info, fim_begin_id), (28, 4));
    assert_eq!(field!(dsv2_tokenizer_info, fim_hole_id), (32, 4));
    assert_eq!(field!(dsv2_tokenizer_info, fim_end_id), (36, 4));
    assert_eq!(field!(dsv2_tokenizer_info, chat_form), (40, 16));
    assert_eq!((size_of::<dsv2_message>(), align_of::<dsv2_message>()), (24, 8));
    assert_eq!(field!(dsv2_message, role), (0, 8));
    assert_eq!(field!(dsv2_message, content), (8, 8));
    assert_eq!(field!(dsv2_message, content_size), (16, 8));
    assert_eq!((size_of::<dsv2_chat>(), align_of::<dsv2_chat>()), (72, 8));
    assert_eq!(field!(dsv2_chat, struct_size), (0, 8));
    assert_eq!(field!(dsv2_chat, messages), (8, 8));
    assert_eq!(field!(dsv2_chat, n), (16, 8));
    assert_eq!(field!(dsv2_chat, first), (24, 8));
    assert_eq!(field!(dsv2_chat, flags), (32, 4));
    assert_eq!(field!(dsv2_chat, messages_json), (40, 8));
    assert_eq!(field!(dsv2_chat, tools), (48, 8));
    assert_eq!(field!(dsv2_chat, variables), (56, 8));
    assert_eq!(field!(dsv2_chat, now), (64, 8));
    assert_eq!((size_of::<dsv2_logit_bias>(), align_of::<dsv2_logit_bias>()), (8, 4));
    assert_eq!(field!(dsv2_logit_bias, token), (0, 4));
    assert_eq!(field!(dsv2_logit_bias, bias), (4, 4));
    assert_eq!((size_of::<dsv2_sampling>(), align_of::<dsv2_sampling>()), (64, 8));
    assert_eq!(field!(dsv2_sampling, struct_size), (0, 8));
    assert_eq!(field!(dsv2_sampling, logit_bias), (8, 8));
    assert_eq!(field!(dsv2_sampling, n_logit_bias), (16, 8));
    assert_eq!(field!(dsv2_sampling, repetition_penalty), (24, 4));
    assert_eq!(field!(dsv2_sampling, presence_penalty), (28, 4));
    assert_eq!(field!(dsv2_sampling, frequency_penalty), (32, 4));
    assert_eq!(field!(dsv2_sampling, penalty_window), (36, 4));
    assert_eq!(field!(dsv2_sampling, temperature), (40, 4));
    assert_eq!(field!(dsv2_sampling, top_k), (44, 4));
    assert_eq!(field!(dsv2_sampling, top_p), (48, 4));
    assert_eq!(field!(dsv2_sampling, min_p), (52, 4));
    assert_eq!(field!(dsv2_sampling, seed), (56, 8));
    assert_eq!((size_of::<dsv2_token_probability>(), align_of::<dsv2_token_probability>()), (8, 4));
    assert_eq!(field!(dsv2_token_probability, token), (0, 4));
    assert_eq!(field!(dsv2_token_probability, log_probability), (4, 4));
    assert_eq!((size_of::<dsv2_session_options>(), align_of::<dsv2_session_options>()), (40, 8));
    assert_eq!(field!(dsv2_session_options, struct_size), (0, 8));
    assert_eq!(field!(dsv2_session_options, max_length), (8, 4));
    assert_eq!(field!(dsv2_session_options, cache_type), (12, 4));
    assert_eq!(field!(dsv2_session_options, attention), (16, 4));
    assert_eq!(field!(dsv2_session_options, progress), (24, 8));
    assert_eq!(field!(dsv2_session_options, progress_user), (32, 8));
    assert_eq!((size_of::<dsv2_step_item>(), align_of::<dsv2_step_item>()), (48, 8));
    assert_eq!(field!(dsv2_step_item, struct_size), (0, 8));
    assert_eq!(field!(dsv2_step_item, session), (8, 8));
    assert_eq!(field!(dsv2_step_item, tokens), (16, 8));
    assert_eq!(field!(dsv2_step_item, n_tokens), (24, 8));
    assert_eq!(field!(dsv2_step_item, logits), (32, 8));
    assert_eq!(field!(dsv2_step_item, status), (40, 4));
    assert_eq!((size_of::<dsv2_save_options>(), align_of::<dsv2_save_options>()), (32, 8));
    assert_eq!(field!(dsv2_save_options, struct_size), (0, 8));
    assert_eq!(field!(dsv2_save_options, append), (8, 4));
    assert_eq!(field!(dsv2_save_options, compression_level), (12, 4));
    assert_eq!(field!(dsv2_save_options, progress), (16, 8));
    assert_eq!(field!(dsv2_save_options, progress_user), (24, 8));
    assert_eq!((size_of::<dsv2_restore_options>(), align_of::<dsv2_restore_options>()), (56, 8));
    assert_eq!(field!(dsv2_restore_options, struct_size), (0, 8));
    assert_eq!(field!(dsv2_restore_options, prompt), (8, 8));
    assert_eq!(field!(dsv2_restore_options, n_prompt), (16, 8));
    assert_eq!(field!(dsv2_restore_options, convert), (24, 4));
    assert_eq!(field!(dsv2_restore_options, progress), (32, 8));
    assert_eq!(field!(dsv2_restore_options, progress_user), (40, 8));
    assert_eq!(field!(dsv2_restore_options, leave_last), (48, 4));
    assert_eq!((size_of::<dsv2_snapshot_info>(), align_of::<dsv2_snapshot_info>()), (48, 8));
    assert_eq!(field!(dsv2_snapshot_info, struct_size), (0, 8));
    assert_eq!(field!(dsv2_snapshot_info, version), (8, 4));
    assert_eq!(field!(dsv2_snapshot_info, cache_type), (12, 4));
    assert_eq!(field!(dsv2_snapshot_info, n_tokens), (16, 8));
    assert_eq!(field!(dsv2_snapshot_info, model_fingerprint), (24, 8));
    assert_eq!(field!(dsv2_snapshot_info, file_bytes), (32, 8));
    assert_eq!(field!(dsv2_snapshot_info, latent_bytes), (40, 8));
    assert_eq!((size_of::<dsv2_routing_info>(), align_of::<dsv2_routing_info>()), (40, 8));
    assert_eq!(field!(dsv2_routing_info, struct_size), (0, 8));
    assert_eq!(field!(dsv2_routing_info, n_tokens), (8, 8));
    assert_eq!(field!(dsv2_routing_info, num_hidden_layers), (16, 4));
    assert_eq!(field!(dsv2_routing_info, n_routed_experts), (20, 4));
    assert_eq!(field!(dsv2_routing_info, num_experts_per_tok), (24, 4));
    assert_eq!(field!(dsv2_routing_info, n_group), (28, 4));
    assert_eq!(field!(dsv2_routing_info, topk_group), (32, 4));
    assert_eq!((size_of::<dsv2_expert_load>(), align_of::<dsv2_expert_load>()), (24, 8));
    assert_eq!(field!(dsv2_expert_load, chosen), (0, 8));
    assert_eq!(field!(dsv2_expert_load, gate_sum), (8, 8));
    assert_eq!(field!(dsv2_expert_load, affinity_sum), (16, 8));
    assert_eq!((size_of::<dsv2_routing_balance>(), align_of::<dsv2_routing_balance>()), (88, 8));
    assert_eq!(field!(dsv2_routing_balance, struct_size), (0, 8));
    assert_eq!(field!(dsv2_routing_balance, expert_balance_loss), (8, 8));
    assert_eq!(field!(dsv2_routing_balance, device_balance_loss), (16, 8));
    assert_eq!(field!(dsv2_routing_balance, communication_balance_loss), (24, 8));
    assert_eq!(field!(dsv2_routing_balance, max_over_mean), (32, 8));
    assert_eq!(field!(dsv2_routing_balance, entropy), (40, 8));
    assert_eq!(field!(dsv2_routing_balance, jain_index), (48, 8));
    assert_eq!(field!(dsv2_routing_balance, never_used), (56, 4));
    assert_eq!(field!(dsv2_routing_balance, dropped_share), (64, 8));
    assert_eq!(field!(dsv2_routing_balance, max_devices_reached), (72, 4));
    assert_eq!(field!(dsv2_routing_balance, mean_devices_reached), (80, 8));
    assert_eq!((size_of::<dsv2_routing_event>(), align_of::<dsv2_routing_event>()), (40, 8));
    assert_eq!(field!(dsv2_routing_event, position), (0, 8));
    assert_eq!(field!(dsv2_routing_event, layer), (8, 4));
    assert_eq!(field!(dsv2_routing_event, n_experts), (12, 4));
    assert_eq!(field!(dsv2_routing_event, experts), (16, 8));
    assert_eq!(field!(dsv2_routing_event, gates), (24, 8));
    assert_eq!(field!(dsv2_routing_event, groups), (32, 8));
}

#[test]
fn enumerations_have_the_values_of_c() {
    assert_eq!(dsv2_status::DSV2_OK.0, 0);
    assert_eq!(dsv2_status::DSV2_ERROR_ARGUMENT.0, 1);
    assert_eq!(dsv2_status::DSV2_ERROR_MEMORY.0, 2);
    assert_eq!(dsv2_status::DSV2_ERROR_IO.0, 3);
    assert_eq!(dsv2_status::DSV2_ERROR_FORMAT.0, 4);
    assert_eq!(dsv2_status::DSV2_ERROR_UNSUPPORTED.0, 5);
    assert_eq!(dsv2_status::DSV2_ERROR_BUSY.0, 6);
    assert_eq!(dsv2_status::DSV2_ERROR_CANCELLED.0, 7);
    assert_eq!(dsv2_status::DSV2_ERROR_FULL.0, 8);
    assert_eq!(dsv2_status::DSV2_ERROR_MISMATCH.0, 9);
    assert_eq!(dsv2_status::DSV2_ERROR_STATE.0, 10);
    assert_eq!(dsv2_status::DSV2_ERROR_BUFFER.0, 11);
    assert_eq!(dsv2_phase::DSV2_PHASE_OPEN.0, 1);
    assert_eq!(dsv2_phase::DSV2_PHASE_PROMPT.0, 2);
    assert_eq!(dsv2_phase::DSV2_PHASE_PACK.0, 3);
    assert_eq!(dsv2_phase::DSV2_PHASE_VERIFY.0, 4);
    assert_eq!(dsv2_phase::DSV2_PHASE_SAVE.0, 5);
    assert_eq!(dsv2_phase::DSV2_PHASE_RESTORE.0, 6);
    assert_eq!(dsv2_phase::DSV2_PHASE_ENCODE.0, 7);
    assert_eq!(dsv2_log_level::DSV2_LOG_WARNING.0, 1);
    assert_eq!(dsv2_log_level::DSV2_LOG_INFO.0, 2);
    assert_eq!(dsv2_weight_type::DSV2_WEIGHTS_AS_STORED.0, 0);
    assert_eq!(dsv2_weight_type::DSV2_WEIGHTS_F32.0, 1);
    assert_eq!(dsv2_weight_type::DSV2_WEIGHTS_F16.0, 2);
    assert_eq!(dsv2_weight_type::DSV2_WEIGHTS_BF16.0, 3);
    assert_eq!(dsv2_weight_type::DSV2_WEIGHTS_F8_E4M3.0, 4);
    assert_eq!(dsv2_weight_type::DSV2_WEIGHTS_Q8_0.0, 5);
    assert_eq!(dsv2_weight_type::DSV2_WEIGHTS_Q6_K.0, 6);
    assert_eq!(dsv2_weight_type::DSV2_WEIGHTS_Q5_K.0, 7);
    assert_eq!(dsv2_weight_type::DSV2_WEIGHTS_Q4_K.0, 8);
    assert_eq!(dsv2_weight_type::DSV2_WEIGHTS_Q4_0.0, 9);
    assert_eq!(dsv2_weight_type::DSV2_WEIGHTS_MIXED.0, 10);
    assert_eq!(dsv2_loading::DSV2_LOADING_MAP.0, 0);
    assert_eq!(dsv2_loading::DSV2_LOADING_READ.0, 1);
    assert_eq!(dsv2_encode_flags::DSV2_ENCODE_BOS.0, 1);
    assert_eq!(dsv2_encode_flags::DSV2_ENCODE_SPECIAL.0, 2);
    assert_eq!(dsv2_decode_flags::DSV2_DECODE_SPECIAL.0, 1);
    assert_eq!(dsv2_chat_flags::DSV2_CHAT_OPEN.0, 1);
    assert_eq!(dsv2_chat_flags::DSV2_CHAT_UNCLOSED.0, 2);
    assert_eq!(dsv2_cache_type::DSV2_CACHE_DEFAULT.0, 0);
    assert_eq!(dsv2_cache_type::DSV2_CACHE_F32.0, 1);
    assert_eq!(dsv2_cache_type::DSV2_CACHE_F16.0, 2);
    assert_eq!(dsv2_cache_type::DSV2_CACHE_Q8.0, 3);
    assert_eq!(dsv2_cache_type::DSV2_CACHE_Q6.0, 4);
    assert_eq!(dsv2_attention::DSV2_ATTENTION_AUTO.0, 0);
    assert_eq!(dsv2_attention::DSV2_ATTENTION_ABSORBED.0, 1);
    assert_eq!(dsv2_attention::DSV2_ATTENTION_EXPANDED.0, 2);
    assert_eq!(dsv2_routing_tokens::DSV2_ROUTING_ALL.0, 0);
    assert_eq!(dsv2_routing_tokens::DSV2_ROUTING_PROMPT.0, 1);
    assert_eq!(dsv2_routing_tokens::DSV2_ROUTING_GENERATED.0, 2);
}

#[test]
fn every_function_is_declared() {
    let functions: &[*const ()] = &[
        dsv2_chat_encode as *const (),
        dsv2_chat_prompt as *const (),
        dsv2_chat_template as *const (),
        dsv2_fim_encode as *const (),
        dsv2_last_error as *const (),
        dsv2_model_bytes_needed as *const (),
        dsv2_model_close as *const (),
        dsv2_model_end_tokens as *const (),
        dsv2_model_get_info as *const (),
        dsv2_model_get_memory as *const (),
        dsv2_model_is_end as *const (),
        dsv2_model_open as *const (),
        dsv2_model_pack as *const (),
        dsv2_model_routing as *const (),
        dsv2_model_routing_reset as *const (),
        dsv2_model_tokenizer as *const (),
        dsv2_model_verify as *const (),
        dsv2_routing_experts as *const (),
        dsv2_routing_free as *const (),
        dsv2_routing_get_info as *const (),
        dsv2_routing_measure as *const (),
        dsv2_routing_merge as *const (),
        dsv2_sampling_defaults as *const (),
        dsv2_sampling_get_defaults as *const (),
        dsv2_session_bytes_per_token as *const (),
        dsv2_session_cancel as *const (),
        dsv2_session_close as *const (),
        dsv2_session_feed as *const (),
        dsv2_session_fork as *const (),
        dsv2_session_length as *const (),
        dsv2_session_log_probability as *const (),
        dsv2_session_logits as *const (),
        dsv2_session_open as *const (),
        dsv2_session_restore as *const (),
        dsv2_session_restore_from as *const (),
        dsv2_session_routing as *const (),
        dsv2_session_routing_reset as *const (),
        dsv2_session_sample as *const (),
        dsv2_session_save as *const (),
        dsv2_session_save_to as *const (),
        dsv2_session_seed as *const (),
        dsv2_session_set_progress as *const (),
        dsv2_session_set_routing_trace as *const (),
        dsv2_session_set_sampling as *const (),
        dsv2_session_tokens as *const (),
        dsv2_session_top_tokens as *const (),
        dsv2_session_truncate as *const (),
        dsv2_snapshot_inspect as *const (),
        dsv2_status_name as *const (),
        dsv2_step as *const (),
        dsv2_token_text as *const (),
        dsv2_tokenizer_close as *const (),
        dsv2_tokenizer_decode as *const (),
        dsv2_tokenizer_encode as *const (),
        dsv2_tokenizer_encode_watched as *const (),
        dsv2_tokenizer_find as *const (),
        dsv2_tokenizer_get_info as *const (),
        dsv2_tokenizer_open as *const (),
        dsv2_utf8_complete as *const (),
        dsv2_version_number as *const (),
        dsv2_version_string as *const (),
    ];
    assert!(functions.iter().all(|function| !function.is_null()));
}
