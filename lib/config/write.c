/* ds_config to the config.json of a pack. ds_config_from_json reads the same configuration back.
 *
 * jansson is not used: it takes the point of real numbers from localeconv, whose structure all threads share, so that
 * a thread of another locale could give "0,707.0". */
#include "config/config.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct writer {
    char *text; /* terminated */
    size_t size, capacity;
    unsigned depth;
    bool no_memory;
} writer;

static void put(writer *w, const char *text, size_t size)
{
    if (!ds_grow(&w->text, &w->capacity, w->size + size + 1, 1)) {
        w->no_memory = true;
        return;
    }
    memcpy(w->text + w->size, text, size);
    w->size += size;
    w->text[w->size] = '\0';
}

static void put_string(writer *w, const char *text) { put(w, text, strlen(text)); }

static void put_line(writer *w)
{
    put(w, "\n", 1);
    for (unsigned i = 0; i < w->depth; i++)
        put(w, "  ", 2);
}

static void open_object(writer *w)
{
    put(w, "{", 1);
    w->depth++;
}

static void close_object(writer *w)
{
    w->depth--;
    put_line(w);
    put(w, "}", 1);
}

/* Names and strings here have no characters that JSON escapes. */
static void put_name(writer *w, const char *name)
{
    if (w->size > 0 && w->text[w->size - 1] != '{')
        put(w, ",", 1);
    put_line(w);
    put(w, "\"", 1);
    put_string(w, name);
    put(w, "\": ", 3);
}

static void put_word(writer *w, const char *name, const char *word)
{
    put_name(w, name);
    put_string(w, word);
}

static void put_text(writer *w, const char *name, const char *text)
{
    put_name(w, name);
    put(w, "\"", 1);
    put_string(w, text);
    put(w, "\"", 1);
}

static void put_bool(writer *w, const char *name, bool value) { put_word(w, name, value ? "true" : "false"); }

static void put_integer(writer *w, const char *name, int64_t value)
{
    char digits[32];
    snprintf(digits, sizeof digits, "%lld", (long long)value);
    put_word(w, name, digits);
}

/* 0: null. */
static void put_optional(writer *w, const char *name, uint32_t value)
{
    if (value == 0)
        put_word(w, name, "null");
    else
        put_integer(w, name, value);
}

/* -1: null. */
static void put_token(writer *w, const char *name, int32_t id)
{
    if (id < 0)
        put_word(w, name, "null");
    else
        put_integer(w, name, id);
}

/* Null, an id, or a list of several. */
static void put_ends(writer *w, const ds_ends *ends)
{
    static const char name[] = "eos_token_id";
    if (ends->n < 2) {
        put_token(w, name, ends->n > 0 ? ends->ids[0] : -1);
        return;
    }
    put_word(w, name, "[");
    for (uint32_t i = 0; i < ends->n; i++) {
        char id[32];
        snprintf(id, sizeof id, "%s%d", i > 0 ? ", " : "", (int)ends->ids[i]);
        put_string(w, id);
    }
    put_string(w, "]");
}

/* Writes "0.707", "1e-6" or "40.0". 9 digits tell any two floats apart. What stands between the digits is the point of
 * the calling thread's locale. */
static void put_real(writer *w, const char *name, float value)
{
    char shown[64], text[sizeof shown + 2];
    size_t n = 0;
    assert(isfinite(value));
    snprintf(shown, sizeof shown, "%.9g", (double)value);
    const char *exponent = strchr(shown, 'e'), *at = shown;
    bool whole = exponent == NULL;
    for (; *at != '\0' && at != exponent; at++) {
        if (*at == '-' || (*at >= '0' && *at <= '9')) {
            text[n++] = *at;
        } else if (text[n - 1] != '.') {
            text[n++] = '.';
            whole = false;
        }
    }
    if (exponent != NULL) {
        text[n++] = 'e';
        if (*++at == '-')
            text[n++] = '-';
        at += 1 + strspn(at + 1, "0");
        while (*at != '\0')
            text[n++] = *at++;
    }
    text[n] = '\0';
    put_word(w, name, text);
    if (whole)
        put(w, ".0", 2);
}

static void put_yarn(writer *w, const ds_yarn *yarn)
{
    if (!yarn->enabled) {
        put_word(w, "rope_scaling", "null");
        return;
    }
    put_name(w, "rope_scaling");
    open_object(w);
    put_text(w, "type", "yarn");
    put_real(w, "factor", yarn->factor);
    put_integer(w, "original_max_position_embeddings", yarn->original_max_position_embeddings);
    put_real(w, "beta_fast", yarn->beta_fast);
    put_real(w, "beta_slow", yarn->beta_slow);
    put_real(w, "mscale", yarn->mscale);
    put_real(w, "mscale_all_dim", yarn->mscale_all_dim);
    close_object(w);
}

static void put_experts(writer *w, const ds_config *c)
{
    static const char *const methods[] = {"greedy", "group_limited_greedy", "noaux_tc"};
    put_optional(w, "n_routed_experts", c->n_routed_experts);
    if (c->n_routed_experts == 0)
        return;
    put_optional(w, "n_shared_experts", c->n_shared_experts);
    put_integer(w, "num_experts_per_tok", c->num_experts_per_tok);
    put_integer(w, "moe_intermediate_size", c->moe_intermediate_size);
    put_integer(w, "n_group", c->n_group);
    put_integer(w, "topk_group", c->topk_group);
    put_integer(w, "first_k_dense_replace", c->first_k_dense_replace);
    put_integer(w, "moe_layer_freq", c->moe_layer_freq);
    put_real(w, "routed_scaling_factor", c->routed_scaling_factor);
    put_bool(w, "norm_topk_prob", c->norm_topk_prob);
    put_text(w, "topk_method", methods[c->topk_method]);
    put_text(w, "scoring_func", c->scoring_func == DS_SCORING_SIGMOID ? "sigmoid" : "softmax");
}

dsv2_status ds_config_to_json(const ds_config *c, char **json)
{
    writer w = {.text = NULL};
    open_object(&w);
    put_text(&w, "model_type", c->is_v3 ? "deepseek_v3" : "deepseek_v2");
    put_integer(&w, "vocab_size", c->vocab_size);
    put_integer(&w, "hidden_size", c->hidden_size);
    put_integer(&w, "intermediate_size", c->intermediate_size);
    put_integer(&w, "num_hidden_layers", c->num_hidden_layers);
    put_integer(&w, "num_attention_heads", c->num_attention_heads);
    put_integer(&w, "kv_lora_rank", c->kv_lora_rank);
    put_integer(&w, "qk_nope_head_dim", c->qk_nope_head_dim);
    put_integer(&w, "qk_rope_head_dim", c->qk_rope_head_dim);
    put_integer(&w, "v_head_dim", c->v_head_dim);
    put_integer(&w, "max_position_embeddings", c->max_position_embeddings);
    put_optional(&w, "q_lora_rank", c->q_lora_rank);
    put_real(&w, "rms_norm_eps", c->rms_norm_eps);
    put_real(&w, "rope_theta", c->rope_theta);
    put_yarn(&w, &c->yarn);
    put_bool(&w, "rope_interleave", !c->rope_pairs_split);
    put_bool(&w, "attention_bias", c->attention_bias);
    put_bool(&w, "tie_word_embeddings", c->tie_word_embeddings);
    put_text(&w, "hidden_act", "silu");
    put_token(&w, "bos_token_id", c->bos_token_id);
    put_ends(&w, &c->ends);
    put_experts(&w, c);
    close_object(&w);
    *json = w.no_memory ? NULL : w.text;
    if (!w.no_memory)
        return DSV2_OK;
    ds_free(w.text);
    return ds_fail_memory("config.json", w.size);
}
