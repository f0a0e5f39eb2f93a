/* config.json: what the published models have is read as their code reads it. Everything else is refused by name. */
#include "config/config.h"

#include "base/json.h"
#include "support/random.h"
#include "support/run.h"
#include "support/tensors.h"
#include "unit/lite.h"

#include <check.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* DeepSeek-V2-Lite, DeepSeek-V2 and DeepSeek-V3 as published, without the fields that are ignored. */
static const char lite[] =
    "{\"model_type\":\"deepseek_v2\",\"attention_bias\":false,\"bos_token_id\":100000,\"eos_token_id\":100001,"
    "\"first_k_dense_replace\":1,\"hidden_act\":\"silu\",\"hidden_size\":2048,\"intermediate_size\":10944,"
    "\"kv_lora_rank\":512,\"max_position_embeddings\":163840,\"moe_intermediate_size\":1408,\"moe_layer_freq\":1,"
    "\"n_group\":1,\"n_routed_experts\":64,\"n_shared_experts\":2,\"norm_topk_prob\":false,\"num_attention_heads\":16,"
    "\"num_experts_per_tok\":6,\"num_hidden_layers\":27,\"num_key_value_heads\":16,\"q_lora_rank\":null,"
    "\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"rms_norm_eps\":1e-06,\"rope_scaling\":{\"beta_fast\":32,"
    "\"beta_slow\":1,\"factor\":40,\"mscale\":0.707,\"mscale_all_dim\":0.707,\"original_max_position_embeddings\":4096,"
    "\"type\":\"yarn\"},\"rope_theta\":10000,\"routed_scaling_factor\":1.0,\"scoring_func\":\"softmax\","
    "\"tie_word_embeddings\":false,\"topk_group\":1,\"topk_method\":\"greedy\",\"v_head_dim\":128,"
    "\"vocab_size\":102400}";
static const char full_changes[] =
    "{\"hidden_size\":5120,\"intermediate_size\":12288,\"moe_intermediate_size\":1536,\"n_group\":8,\"topk_group\":3,"
    "\"n_routed_experts\":160,\"num_attention_heads\":128,\"num_key_value_heads\":128,\"num_hidden_layers\":60,"
    "\"q_lora_rank\":1536,\"routed_scaling_factor\":16.0,\"topk_method\":\"group_limited_greedy\"}";
static const char v3_changes[] =
    "{\"model_type\":\"deepseek_v3\",\"vocab_size\":129280,\"bos_token_id\":0,\"eos_token_id\":1,"
    "\"first_k_dense_replace\":3,\"hidden_size\":7168,\"intermediate_size\":18432,\"moe_intermediate_size\":2048,"
    "\"n_group\":8,\"topk_group\":4,\"n_routed_experts\":256,\"n_shared_experts\":1,\"num_experts_per_tok\":8,"
    "\"num_attention_heads\":128,\"num_key_value_heads\":128,\"num_hidden_layers\":61,\"num_nextn_predict_layers\":1,"
    "\"q_lora_rank\":1536,\"norm_topk_prob\":true,\"scoring_func\":\"sigmoid\",\"topk_method\":\"noaux_tc\","
    "\"routed_scaling_factor\":2.5,\"quantization_config\":{\"activation_scheme\":\"dynamic\",\"fmt\":\"e4m3\","
    "\"quant_method\":\"fp8\",\"weight_block_size\":[128,64]}}";

/* The text of `base` with the members of `changes` put over it. A member that is the string "-" is left out. The
 * members of an object are put over those of the object that is there. */
static void apply(json_t *object, json_t *changes)
{
    const char *name;
    json_t *value;
    json_object_foreach(changes, name, value) {
        if (json_is_string(value) && strcmp(json_string_value(value), "-") == 0)
            json_object_del(object, name);
        else if (json_is_object(value) && json_is_object(json_object_get(object, name)))
            apply(json_object_get(object, name), value);
        else
            json_object_set(object, name, value);
    }
}

static char *changed(const char *base, const char *first, const char *second)
{
    json_t *object = json_loads(base, 0, NULL);
    const char *all[] = {first, second};
    for (size_t i = 0; i < 2; i++) {
        if (all[i] == NULL)
            continue;
        json_t *changes = json_loads(all[i], 0, NULL);
        ck_assert_msg(changes != NULL, "%s", all[i]);
        apply(object, changes);
        json_decref(changes);
    }
    char *text = json_dumps(object, 0);
    json_decref(object);
    return text;
}

static dsv2_status read_text(const char *text, ds_config *config)
{
    return ds_config_from_json("here/config.json", text, strlen(text), NULL, config);
}

static ds_config read_changed(const char *first, const char *second)
{
    char *text = changed(lite, first, second);
    ds_config config;
    dsv2_status status = read_text(text, &config);
    ck_assert_msg(status == DSV2_OK, "%s: %s", second != NULL ? second : first, dsv2_last_error());
    free(text);
    return config;
}

START_TEST(published_models_are_read)
{
    ds_config c = read_changed(NULL, NULL);
    expect_lite(&c);
    ck_assert_uint_eq(c.vocab_size, 102400);
    ck_assert(c.yarn.mscale == 0.707f && c.yarn.mscale_all_dim == 0.707f);
    ck_assert_int_eq(c.bos_token_id, 100000);
    ck_assert_int_eq(c.ends.ids[0], 100001);
    ck_assert_uint_eq(c.fp8_block_rows, 0);

    c = read_changed(full_changes, NULL);
    ck_assert_uint_eq(c.q_lora_rank, 1536);
    ck_assert_uint_eq(c.n_group, 8);
    ck_assert_uint_eq(c.topk_group, 3);
    ck_assert_int_eq(c.topk_method, DS_TOPK_GROUP_LIMITED_GREEDY);
    ck_assert(c.routed_scaling_factor == 16);

    c = read_changed(v3_changes, NULL);
    ck_assert(c.is_v3 && c.norm_topk_prob && c.routed_scaling_factor == 2.5f);
    ck_assert_int_eq(c.topk_method, DS_TOPK_NOAUX_TC);
    ck_assert_int_eq(c.scoring_func, DS_SCORING_SIGMOID);
    ck_assert_uint_eq(c.num_hidden_layers, 61);
    ck_assert_uint_eq(c.fp8_block_rows, 128);
    ck_assert_uint_eq(c.fp8_block_cols, 64);
}
END_TEST

START_TEST(layers_are_mixtures_as_in_the_published_code)
{
    ds_config c = read_changed("{\"first_k_dense_replace\":3,\"moe_layer_freq\":2}", NULL);
    static const bool expected[] = {false, false, false, false, true, false, true};
    for (uint32_t layer = 0; layer < 7; layer++)
        ck_assert_int_eq(ds_config_is_moe(&c, layer), expected[layer]);
    static const char *const dense[] = {"{\"n_routed_experts\":null}",
                                        "{\"n_routed_experts\":\"-\",\"num_experts_per_tok\":null}",
                                        "{\"n_routed_experts\":0}"};
    for (size_t i = 0; i < 3; i++) {
        c = read_changed(dense[i], NULL);
        ck_assert_uint_eq(c.n_routed_experts, 0);
        for (uint32_t layer = 0; layer < c.num_hidden_layers; layer++)
            ck_assert(!ds_config_is_moe(&c, layer));
    }
}
END_TEST

START_TEST(fields_that_change_the_result_are_honoured)
{
    ck_assert_uint_eq(read_changed("{\"n_group\":4,\"topk_group\":2}", NULL).n_group, 1); /* greedy ignores groups */
    ck_assert_int_eq(read_changed("{\"topk_method\":\"gready\"}", NULL).topk_method, DS_TOPK_GREEDY);
    ck_assert_int_eq(read_changed("{\"topk_method\":\"-\",\"scoring_func\":\"-\"}", NULL).topk_method, DS_TOPK_GREEDY);
    ck_assert(read_changed("{\"attention_bias\":true}", NULL).attention_bias);
    ck_assert(read_changed("{\"tie_word_embeddings\":true}", NULL).tie_word_embeddings);
    ck_assert(read_changed("{\"rope_interleave\":false}", NULL).rope_pairs_split);
    ck_assert(!read_changed("{\"rope_interleave\":true}", NULL).rope_pairs_split);
    ck_assert(read_changed("{\"hidden_act\":\"swish\"}", NULL).hidden_size == 2048);
    ck_assert_uint_eq(read_changed("{\"n_shared_experts\":null}", NULL).n_shared_experts, 0);
    ck_assert(read_changed("{\"rope_theta\":5e5}", NULL).rope_theta == 5e5f);
    ck_assert(read_changed("{\"num_key_value_heads\":\"-\"}", NULL).num_attention_heads == 16);
    ck_assert(
        read_changed("{\"ep_size\":8,\"pretraining_tp\":4,\"aux_loss_alpha\":0.5,\"head_dim\":64}", NULL).hidden_size ==
        2048);
    ck_assert(read_changed("{\"qk_nope_head_dim\":33,\"v_head_dim\":7}", NULL).v_head_dim == 7);
}
END_TEST

START_TEST(normalised_gates_are_scaled_as_in_the_published_code)
{
    /* V2 scales or normalises, V3 normalises and scales. A single gate is never normalised. */
    ds_config c = read_changed("{\"norm_topk_prob\":true,\"routed_scaling_factor\":16}", NULL);
    ck_assert(c.norm_topk_prob && c.routed_scaling_factor == 1);
    c = read_changed("{\"norm_topk_prob\":true,\"routed_scaling_factor\":16,\"num_experts_per_tok\":1}", NULL);
    ck_assert(!c.norm_topk_prob && c.routed_scaling_factor == 16);
    c = read_changed(v3_changes, "{\"norm_topk_prob\":false}");
    ck_assert(!c.norm_topk_prob && c.routed_scaling_factor == 2.5f);
    c = read_changed(v3_changes, "{\"num_experts_per_tok\":1}");
    ck_assert(!c.norm_topk_prob && c.routed_scaling_factor == 2.5f);
}
END_TEST

START_TEST(rope_scaling_takes_the_published_defaults_and_newer_spellings)
{
    ds_config c = read_changed("{\"rope_scaling\":null}", NULL);
    ck_assert(!c.yarn.enabled && c.yarn.factor == 1 && c.yarn.mscale_all_dim == 0);
    c = read_changed("{\"rope_scaling\":\"-\",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":20000}}",
                     NULL);
    ck_assert(!c.yarn.enabled && c.rope_theta == 20000);
    c = read_changed("{\"rope_scaling\":null}", "{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2.5}}");
    ck_assert(c.yarn.enabled && c.yarn.factor == 2.5f && c.yarn.beta_fast == 32 && c.yarn.beta_slow == 1);
    ck_assert(c.yarn.mscale == 1 && c.yarn.mscale_all_dim == 0);
    ck_assert_uint_eq(c.yarn.original_max_position_embeddings, 4096);
    c = read_changed("{\"rope_scaling\":\"-\",\"rope_theta\":\"-\"}",
                     "{\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":3,\"rope_theta\":7000,\"beta_slow\":2}}");
    ck_assert(c.yarn.enabled && c.yarn.factor == 3 && c.rope_theta == 7000 && c.yarn.beta_slow == 2);
}
END_TEST

START_TEST(special_tokens_are_an_id_a_list_or_none)
{
    ck_assert_int_eq(read_changed("{\"bos_token_id\":null}", NULL).bos_token_id, -1);
    ck_assert_int_eq(read_changed("{\"bos_token_id\":\"-\"}", NULL).bos_token_id, -1);
    ds_config c = read_changed("{\"eos_token_id\":[7,8,7,9.0]}", NULL);
    ck_assert_uint_eq(c.ends.n, 3);
    ck_assert(c.ends.ids[0] == 7 && c.ends.ids[1] == 8 && c.ends.ids[2] == 9);
    ck_assert_uint_eq(read_changed("{\"eos_token_id\":[]}", NULL).ends.n, 0);
    ck_assert_uint_eq(read_changed("{\"eos_token_id\":null}", NULL).ends.n, 0);
    ck_assert_uint_eq(read_changed("{\"eos_token_id\":\"-\"}", NULL).ends.n, 0);
}
END_TEST

static const struct {
    const char *base; /* changes to V2-Lite, or NULL */
    const char *change;
    const char *part; /* of the message */
    dsv2_status status;
} bad[] = {
    /* names that another model's code would know */
    {NULL, "{\"model_type\":\"llama\"}", "model_type is \"llama\"", DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"model_type\":\"deepseek_v32\"}", "model_type is \"deepseek_v32\"", DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"model_type\":\"-\"}", "model_type is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"model_type\":2}", "model_type is an integer, expected a string", DSV2_ERROR_FORMAT},
    {NULL, "{\"hidden_act\":\"gelu\"}", "hidden_act is \"gelu\"", DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"use_mla\":false}", "use_mla is \"false\"", DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"mlp_bias\":true}", "mlp_bias is \"true\"", DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"scoring_func\":\"sigmoid\"}", "scoring_func is \"sigmoid\"", DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"topk_method\":\"noaux_tc\"}", "topk_method is \"noaux_tc\"", DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"topk_method\":\"random\"}", "topk_method is \"random\"", DSV2_ERROR_UNSUPPORTED},
    {v3_changes, "{\"scoring_func\":\"softmax\"}", "scoring_func is \"softmax\"", DSV2_ERROR_UNSUPPORTED},
    {v3_changes, "{\"topk_method\":\"greedy\"}", "topk_method is \"greedy\"", DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"num_key_value_heads\":8}", "num_key_value_heads is 8", DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"rope_scaling\":{\"type\":\"linear\"}}", "rope_scaling.type is \"linear\"", DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"rope_scaling\":{\"type\":\"dynamic\"}}", "rope_scaling.type is \"dynamic\"", DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"rope_scaling\":{\"rope_type\":\"llama3\"}}", "rope_scaling.rope_type is \"llama3\"",
     DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"rope_scaling\":{\"attention_factor\":1.5}}", "rope_scaling.attention_factor is set",
     DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"rope_scaling\":{\"truncate\":false}}", "rope_scaling.truncate is \"false\"", DSV2_ERROR_UNSUPPORTED},
    {NULL, "{\"quantization_config\":{\"quant_method\":\"awq\"}}", "quantization_config.quant_method is \"awq\"",
     DSV2_ERROR_UNSUPPORTED},
    {v3_changes, "{\"quantization_config\":{\"fmt\":\"e5m2\"}}", "quantization_config.fmt is \"e5m2\"",
     DSV2_ERROR_UNSUPPORTED},
    /* what is missing */
    {NULL, "{\"vocab_size\":\"-\"}", "vocab_size is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"hidden_size\":null}", "hidden_size is null, expected an integer", DSV2_ERROR_FORMAT},
    {NULL, "{\"intermediate_size\":\"-\"}", "intermediate_size is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"num_hidden_layers\":\"-\"}", "num_hidden_layers is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"num_attention_heads\":\"-\"}", "num_attention_heads is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"kv_lora_rank\":\"-\"}", "kv_lora_rank is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"qk_nope_head_dim\":\"-\"}", "qk_nope_head_dim is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"qk_rope_head_dim\":\"-\"}", "qk_rope_head_dim is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"v_head_dim\":\"-\"}", "v_head_dim is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"max_position_embeddings\":\"-\"}", "max_position_embeddings is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"q_lora_rank\":\"-\"}", "q_lora_rank is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"moe_intermediate_size\":\"-\"}", "moe_intermediate_size is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"num_experts_per_tok\":null}", "num_experts_per_tok is null", DSV2_ERROR_FORMAT},
    {v3_changes, "{\"n_routed_experts\":\"-\"}", "n_routed_experts is missing", DSV2_ERROR_FORMAT},
    {v3_changes, "{\"first_k_dense_replace\":\"-\"}", "first_k_dense_replace is missing", DSV2_ERROR_FORMAT},
    {v3_changes, "{\"n_group\":null}", "n_group is null", DSV2_ERROR_FORMAT},
    {full_changes, "{\"topk_group\":\"-\"}", "topk_group is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"rope_scaling\":{\"type\":\"-\"}}", "rope_scaling.type is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"rope_scaling\":{\"factor\":\"-\"}}", "rope_scaling.factor is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"quantization_config\":{\"bits\":4}}", "quantization_config.quant_method is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"model_type\":\"-\"}", "model_type is missing", DSV2_ERROR_FORMAT},
    {NULL, "{\"model_type\":\"-\",\"architectures\":[\"LlamaForCausalLM\"]}", "model_type is missing",
     DSV2_ERROR_FORMAT},
    {NULL, "{\"quantization_config\":{\"quant_method\":\"fp8\"}}", "quantization_config.weight_block_size is missing",
     DSV2_ERROR_FORMAT},
    /* wrong kinds */
    {NULL, "{\"hidden_size\":\"2048\"}", "hidden_size is a string, expected an integer", DSV2_ERROR_FORMAT},
    {NULL, "{\"hidden_size\":2048.5}", "hidden_size is a number with a fraction", DSV2_ERROR_FORMAT},
    {NULL, "{\"hidden_size\":true}", "hidden_size is true, expected an integer", DSV2_ERROR_FORMAT},
    {NULL, "{\"rms_norm_eps\":\"1e-6\"}", "rms_norm_eps is a string, expected a number", DSV2_ERROR_FORMAT},
    {NULL, "{\"attention_bias\":0}", "attention_bias is an integer, expected true or false", DSV2_ERROR_FORMAT},
    {NULL, "{\"hidden_act\":[]}", "hidden_act is an array, expected a string", DSV2_ERROR_FORMAT},
    {NULL, "{\"rope_scaling\":\"yarn\"}", "rope_scaling is a string, expected an object or null", DSV2_ERROR_FORMAT},
    {NULL, "{\"quantization_config\":true}", "quantization_config is true", DSV2_ERROR_FORMAT},
    {v3_changes, "{\"quantization_config\":{\"weight_block_size\":[128]}}",
     "quantization_config.weight_block_size is an array", DSV2_ERROR_FORMAT},
    {v3_changes, "{\"quantization_config\":{\"weight_block_size\":[128,0]}}", "weight_block_size holds an integer (0)",
     DSV2_ERROR_FORMAT},
    {v3_changes, "{\"quantization_config\":{\"weight_block_size\":[128,null]}}", "weight_block_size holds null",
     DSV2_ERROR_FORMAT},
    {NULL, "{\"bos_token_id\":\"<s>\"}", "bos_token_id is a string", DSV2_ERROR_FORMAT},
    {NULL, "{\"eos_token_id\":[1.5]}", "eos_token_id is a number with a fraction", DSV2_ERROR_FORMAT},
    /* out of bounds */
    {NULL, "{\"vocab_size\":0}", "vocab_size is 0, expected 1 to 16777216", DSV2_ERROR_FORMAT},
    {NULL, "{\"vocab_size\":-1}", "vocab_size is -1", DSV2_ERROR_FORMAT},
    {NULL, "{\"hidden_size\":4294969344}", "hidden_size is 4294969344", DSV2_ERROR_FORMAT},
    {NULL, "{\"num_hidden_layers\":9223372036854775807}", "num_hidden_layers is 9223372036854775807",
     DSV2_ERROR_FORMAT},
    {NULL, "{\"num_attention_heads\":1025,\"num_key_value_heads\":1025}", "num_attention_heads is 1025",
     DSV2_ERROR_FORMAT},
    {NULL, "{\"n_routed_experts\":4097}", "n_routed_experts is 4097", DSV2_ERROR_FORMAT},
    {NULL, "{\"num_experts_per_tok\":65}", "num_experts_per_tok is 65, expected 1 to 64", DSV2_ERROR_FORMAT},
    {NULL, "{\"num_experts_per_tok\":0}", "num_experts_per_tok is 0", DSV2_ERROR_FORMAT},
    {NULL, "{\"q_lora_rank\":0}", "q_lora_rank is 0", DSV2_ERROR_FORMAT},
    {NULL, "{\"qk_rope_head_dim\":63}", "qk_rope_head_dim is 63, expected an even number", DSV2_ERROR_FORMAT},
    {NULL, "{\"v_head_dim\":16385}", "v_head_dim is 16385", DSV2_ERROR_FORMAT},
    {NULL, "{\"moe_layer_freq\":0}", "moe_layer_freq is 0", DSV2_ERROR_FORMAT},
    {NULL, "{\"n_shared_experts\":4096}", "n_shared_experts times moe_intermediate_size is 5767168", DSV2_ERROR_FORMAT},
    {NULL, "{\"max_position_embeddings\":67108865}", "max_position_embeddings is 67108865", DSV2_ERROR_FORMAT},
    {NULL, "{\"bos_token_id\":102400}", "bos_token_id is 102400, expected 0 to vocab_size - 1, 102399",
     DSV2_ERROR_FORMAT},
    {NULL, "{\"eos_token_id\":[-1]}", "eos_token_id is -1", DSV2_ERROR_FORMAT},
    {NULL, "{\"rms_norm_eps\":0}", "rms_norm_eps is 0", DSV2_ERROR_FORMAT},
    {NULL, "{\"rms_norm_eps\":1e-300}", "rms_norm_eps is 1e-300", DSV2_ERROR_FORMAT},
    {NULL, "{\"rope_theta\":1}", "rope_theta is 1, expected 1.001", DSV2_ERROR_FORMAT},
    {NULL, "{\"rope_theta\":-1e4}", "rope_theta is -10000", DSV2_ERROR_FORMAT},
    {NULL, "{\"rope_scaling\":{\"factor\":0.5}}", "rope_scaling.factor is 0.5", DSV2_ERROR_FORMAT},
    {NULL, "{\"rope_scaling\":{\"beta_fast\":0}}", "rope_scaling.beta_fast is 0", DSV2_ERROR_FORMAT},
    {NULL, "{\"rope_scaling\":{\"beta_slow\":-1}}", "rope_scaling.beta_slow is -1", DSV2_ERROR_FORMAT},
    {NULL, "{\"rope_scaling\":{\"mscale\":-0.7}}", "rope_scaling.mscale is -0.7", DSV2_ERROR_FORMAT},
    {NULL, "{\"rope_scaling\":{\"original_max_position_embeddings\":0}}",
     "rope_scaling.original_max_position_embeddings is 0", DSV2_ERROR_FORMAT},
    {NULL, "{\"routed_scaling_factor\":1e300}", "routed_scaling_factor is 1e+300", DSV2_ERROR_FORMAT},
    {NULL, "{\"routed_scaling_factor\":0}", "routed_scaling_factor is 0", DSV2_ERROR_FORMAT},
    /* what does not go together */
    {full_changes, "{\"n_group\":7,\"topk_group\":3}", "n_group is 7, which does not divide n_routed_experts, 160",
     DSV2_ERROR_FORMAT},
    {full_changes, "{\"n_group\":65}", "n_group is 65, expected 1 to 64", DSV2_ERROR_FORMAT},
    {full_changes, "{\"topk_group\":9}", "topk_group is 9, expected 1 to 8", DSV2_ERROR_FORMAT},
    {full_changes, "{\"n_routed_experts\":8}", "num_experts_per_tok is 6, but topk_group leaves 3", DSV2_ERROR_FORMAT},
    {v3_changes, "{\"n_routed_experts\":8}", "expected at least 2 experts in a group", DSV2_ERROR_FORMAT},
    {NULL, "{\"n_routed_experts\":5}", "num_experts_per_tok is 6, but topk_group leaves 5", DSV2_ERROR_FORMAT},
};

START_TEST(what_cannot_be_run_is_refused_by_file_field_and_value)
{
    char *text = changed(lite, bad[_i].base, bad[_i].change);
    ds_config config, before;
    memset(&config, 0x5a, sizeof config);
    before = config;
    dsv2_status status = read_text(text, &config);
    free(text);
    ck_assert_msg(status == bad[_i].status, "%s: status %d: %s", bad[_i].change, (int)status,
                  status == DSV2_OK ? "accepted" : dsv2_last_error());
    ck_assert_mem_eq(&config, &before, sizeof config);
    ck_assert_msg(strstr(dsv2_last_error(), "here/config.json: ") == dsv2_last_error(), "%s", dsv2_last_error());
    ck_assert_msg(strstr(dsv2_last_error(), bad[_i].part) != NULL, "\"%s\" is not in: %s", bad[_i].part,
                  dsv2_last_error());
}
END_TEST

/* Fields as transformers takes them, and values that nobody reads, whatever they are. */
START_TEST(what_transformers_takes_is_read)
{
    ds_config c = read_changed("{\"hidden_size\":512.0,\"eos_token_id\":[100001.0]}", NULL);
    ck_assert_uint_eq(c.hidden_size, 512);
    ck_assert_int_eq(c.ends.ids[0], 100001);
    c = read_changed("{\"model_type\":\"-\",\"architectures\":[\"DeepseekV2ForCausalLM\"]}", NULL);
    ck_assert(!c.is_v3);
    c = read_changed(v3_changes, "{\"model_type\":\"-\",\"architectures\":[\"DeepseekV3ForCausalLM\"],"
                                 "\"n_group\":\"-\",\"topk_group\":\"-\"}");
    ck_assert(c.is_v3 && c.n_group == 8 && c.topk_group == 4);
    static const char *const appended[] = {
        "\"rope_scaling\":{}", "\"quantization_config\":{}", "\"rope_parameters\":{}",
        "\"model_max_length\":1000000000000000019884624838656", "\"x\":[NaN,-Infinity,Infinity,1e999,-1e999]",
        "\"x\":{\"y\":{\"z\":[{},[],null]}},\"x\":\"\\u0000\\ud800\"", "\"\\ud800\":1",
    };
    for (size_t i = 0; i < sizeof appended / sizeof *appended; i++) {
        char *text = changed(lite, "{\"rope_scaling\":\"-\"}", NULL), *all = malloc(strlen(text) + 200);
        ck_assert(all != NULL);
        sprintf(all, "%.*s,%s}", (int)strlen(text) - 1, text, appended[i]);
        ck_assert_msg(read_text(all, &c) == DSV2_OK, "%s: %s", appended[i], dsv2_last_error());
        ck_assert(!c.yarn.enabled && c.fp8_block_rows == 0);
        free(all);
        free(text);
    }
}
END_TEST

/* Numbers and words that jansson cannot hold are refused by the field's name. */
START_TEST(numbers_beyond_every_type_are_refused_by_name)
{
    static const char *const cases[][2] = {
        {"\"hidden_size\":99999999999999999999", "hidden_size is 1e+20, expected 1 to "},
        {"\"hidden_size\":-9223372036854775809", "hidden_size is -9.22337203685478e+18, expected"},
        {"\"hidden_size\":1e999", "hidden_size is 1.79769313486232e+308, expected"},
        {"\"hidden_size\":NaN", "hidden_size is NaN, expected an integer"},
        {"\"rope_theta\":Infinity", "rope_theta is Infinity, expected a number"},
        {"\"rope_theta\":-Infinity", "rope_theta is -Infinity, expected a number"},
        {"\"rope_theta\":-17976931348623159000000000000000e277", "rope_theta is -1.79769e+308, expected"},
        {"\"bos_token_id\":100000000000000000000", "bos_token_id is 1e+20, expected 0 to"},
    };
    ds_config config;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char name[64], *text, *all;
        sprintf(name, "{\"%.*s\":\"-\"}", (int)strcspn(cases[i][0] + 1, "\""), cases[i][0] + 1);
        text = changed(lite, name, NULL);
        all = malloc(strlen(text) + 200);
        ck_assert(all != NULL);
        sprintf(all, "%.*s,%s}", (int)strlen(text) - 1, text, cases[i][0]);
        ck_assert_int_eq(read_text(all, &config), DSV2_ERROR_FORMAT);
        ck_assert_msg(strstr(dsv2_last_error(), cases[i][1]) != NULL, "%s lacks %s", dsv2_last_error(), cases[i][1]);
        free(all);
        free(text);
    }
}
END_TEST

static const char *const bad_json[][2] = {
    {"", "not valid JSON"},
    {"[1]", "is an array, expected a JSON object"},
    {"{\"a\":nan}", "line 1, column 6: not valid JSON: no value"},
    {"{\"a\":-}", "line 1, column 7: not valid JSON: no value"},
    {"{\"a\":1.}", "line 1, column 8: not valid JSON: a number that breaks off"},
    {"{\"a\":[1\n,2,]}", "line 2, column 4: not valid JSON: no value"},
    {"{\"a\":01}", "line 1, column 7: not valid JSON: neither , nor }"},
    {"{\"a\":\"\\x\"}", "line 1, column 7: not valid JSON: an escape"},
    {"{\"a\":\"\n\"}", "line 1, column 7: not valid JSON: a control character"},
    {"{\"a\":1}}", "line 1, column 8: not valid JSON: there is more"},
    {"{a:1}", "line 1, column 2: not valid JSON: no member's name"},
    {"{\"vocab_size\":1,\"vocab_size\":2}", "duplicate object key"},
    {"{\"model_type\":\"\xff\"}", "line 1"},
    {"{\"model_type\":\"deepseek_v2\"", "line 1, column 28"},
};

START_TEST(what_is_no_json_is_refused_by_line_and_column)
{
    ds_config config;
    ck_assert_int_eq(read_text(bad_json[_i][0], &config), DSV2_ERROR_FORMAT);
    ck_assert_msg(strstr(dsv2_last_error(), "here/config.json: ") == dsv2_last_error(), "%s", dsv2_last_error());
    ck_assert_msg(strstr(dsv2_last_error(), bad_json[_i][1]) != NULL, "%s", dsv2_last_error());
}
END_TEST

/* What another thread's locale may have left in the structure that localeconv gives to all threads. */
static char point[] = ".";

struct lconv *localeconv(void)
{
    static struct lconv left;
    left.decimal_point = point;
    return &left;
}

/* 9 digits bring every float back. */
START_TEST(what_is_written_is_read_back_whatever_another_threads_locale_is)
{
    static const char *const changes[][2] = {
        {NULL, NULL}, {full_changes, NULL}, {v3_changes, NULL}, {v3_changes, "{\"rope_interleave\":false}"},
        {"{\"rope_scaling\":\"-\",\"bos_token_id\":\"-\"}", NULL},
        {"{\"n_routed_experts\":null,\"attention_bias\":true,\"tie_word_embeddings\":true}", NULL},
        {"{\"rms_norm_eps\":1.23456789e-05,\"rope_theta\":12345678901.0}", "{\"routed_scaling_factor\":0.1}"},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        point[0] = '.';
        ds_config config = read_changed(changes[i][0], changes[i][1]), back;
        char *json, *again;
        point[0] = ',';
        ck_assert_int_eq(ds_config_to_json(&config, &json), DSV2_OK);
        ck_assert_msg(read_text(json, &back) == DSV2_OK, "%s: %s", dsv2_last_error(), json);
        ck_assert_int_eq(ds_config_to_json(&back, &again), DSV2_OK);
        ck_assert_str_eq(again, json);
        ck_assert(back.rms_norm_eps == config.rms_norm_eps && back.rope_theta == config.rope_theta);
        ck_assert(back.yarn.enabled == config.yarn.enabled && back.yarn.mscale == config.yarn.mscale);
        ck_assert(back.routed_scaling_factor == config.routed_scaling_factor);
        ck_assert(i > 0 || strstr(json, "\"mscale\": 0.707000017,") != NULL);
        ck_assert(i > 0 || strstr(json, "\"rms_norm_eps\": 9.99999997e-7,\n  \"rope_theta\": 10000.0,\n") != NULL);
        ds_free(again);
        ds_free(json);
    }
    point[0] = '.';
}
END_TEST

/* As jansson writes them, which wrote the packs that are there: the same bytes. */
START_TEST(numbers_are_written_as_ever)
{
    ds_config config = read_changed(NULL, NULL);
    random_begin(9);
    for (int i = 0; i < 3000; i++) {
        config.rope_theta = (float)(random_bits() >> 40) * (float)pow(10, (double)random_below(40) - 25);
        char *json, number[64] = {0};
        json_t *real = json_real((double)config.rope_theta);
        ck_assert(json_dumpb(real, number, sizeof number - 1, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)) < 40);
        const char *expected = test_format("\"rope_theta\": %s,\n", number);
        ck_assert_int_eq(ds_config_to_json(&config, &json), DSV2_OK);
        ck_assert_msg(strstr(json, expected) != NULL, "%s not in %s", expected, json);
        ck_assert(strtof(number, NULL) == config.rope_theta);
        ds_free(json);
        json_decref(real);
    }
}
END_TEST

START_TEST(deep_json_is_refused)
{
    enum { DEPTH = 200000 };
    char *text = malloc(DEPTH + 6);
    ck_assert_ptr_nonnull(text);
    memcpy(text, "{\"a\":", 5);
    memset(text + 5, '[', DEPTH);
    text[5 + DEPTH] = '\0';
    ds_config config;
    ck_assert_int_eq(read_text(text, &config), DSV2_ERROR_FORMAT);
    ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "more than 128 deep"));
    free(text);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("config.json");
    tcase_add_test(tests, published_models_are_read);
    tcase_add_test(tests, layers_are_mixtures_as_in_the_published_code);
    tcase_add_test(tests, fields_that_change_the_result_are_honoured);
    tcase_add_test(tests, normalised_gates_are_scaled_as_in_the_published_code);
    tcase_add_test(tests, rope_scaling_takes_the_published_defaults_and_newer_spellings);
    tcase_add_test(tests, special_tokens_are_an_id_a_list_or_none);
    tcase_add_loop_test(tests, what_cannot_be_run_is_refused_by_file_field_and_value, 0, sizeof bad / sizeof *bad);
    tcase_add_loop_test(tests, what_is_no_json_is_refused_by_line_and_column, 0, sizeof bad_json / sizeof *bad_json);
    tcase_add_test(tests, deep_json_is_refused);
    tcase_add_test(tests, what_is_written_is_read_back_whatever_another_threads_locale_is);
    tcase_add_test(tests, numbers_are_written_as_ever);
    tcase_add_test(tests, what_transformers_takes_is_read);
    tcase_add_test(tests, numbers_beyond_every_type_are_refused_by_name);

    Suite *suite = suite_create("config");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}
