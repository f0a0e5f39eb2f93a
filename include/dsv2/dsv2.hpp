/* libdsv2 for C++11 and later: handles that close themselves, failures as exceptions. Header only; the library itself
 * is C.
 *
 *     dsv2::model model("DeepSeek-V2-Lite-Chat");
 *     dsv2::session session(model);
 *     session.feed(model.tokenizer().encode("Once upon a time", DSV2_ENCODE_BOS));
 *     for (int32_t token; (token = session.sample()) != model.info().eos_token_id; session.feed({token}))
 *         std::cout << model.tokenizer().decode({token});
 *
 * Contracts, units and thread rules are those of the C functions of the same names, apart from this:
 *   - A call that fails throws dsv2::error, with the status and the message.
 *   - Handles may be moved; a moved-from handle may only be destroyed or assigned to. Model and tokenizer may be copied
 *     too, and copies are the same object.
 *   - A tokenizer keeps its model open, and a session needs no model object beside it.
 *   - An exception that leaves a callback cancels the call, which then throws the exception again.
 */
#ifndef DSV2_HPP
#define DSV2_HPP

#include <dsv2/dsv2.h>

#include <exception>
#include <functional>
#include <istream>
#include <memory>
#include <ostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace dsv2 {

/* A failed call: what() is the library's message. */
class error : public std::runtime_error {
public:
    error(dsv2_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    dsv2_status status() const noexcept { return status_; }

private:
    dsv2_status status_;
};

inline void check(dsv2_status status) {
    if (status != DSV2_OK)
        throw error(status, dsv2_last_error());
}

/* Any of the structures that begin with struct_size, with zeros behind that: `make<dsv2_session_options>()`. */
template <class T> T make() {
    T value = T();
    value.struct_size = sizeof(T);
    return value;
}

inline dsv2_sampling default_sampling() {
    dsv2_sampling sampling = make<dsv2_sampling>();
    check(dsv2_sampling_get_defaults(&sampling));
    return sampling;
}

/* A progress function returns false to cancel the call. */
typedef std::function<bool(dsv2_phase phase, uint64_t done, uint64_t total)> progress_function;

namespace detail {

/* Carries a C++ callback through C: an exception is kept while the C frames return, and then thrown again. */
struct guard {
    std::exception_ptr thrown;

    void check(dsv2_status status) {
        if (thrown) {
            std::exception_ptr pending;
            std::swap(pending, thrown);
            std::rethrow_exception(pending);
        }
        dsv2::check(status);
    }

    template <class F> int run(F call) noexcept {
        try {
            return call() ? 0 : 1;
        } catch (...) {
            thrown = std::current_exception();
            return 1;
        }
    }
};

struct progress : guard {
    progress_function function;

    explicit progress(progress_function f) : function(std::move(f)) {}
    dsv2_progress_fn callback() const { return function ? &progress::call : nullptr; }
    static int call(void *user, dsv2_phase phase, uint64_t done, uint64_t total) {
        progress *self = static_cast<progress *>(user);
        return self->run([&] { return self->function(phase, done, total); });
    }
};

struct sink : guard {
    std::ostream *stream;

    static int write(void *user, const void *data, size_t size) {
        sink *self = static_cast<sink *>(user);
        return self->run([&] {
            return bool(self->stream->write(static_cast<const char *>(data), static_cast<std::streamsize>(size)));
        });
    }
};

struct source : guard {
    std::istream *stream;

    static int read(void *user, void *data, size_t size, size_t *got) {
        source *self = static_cast<source *>(user);
        return self->run([&] {
            self->stream->read(static_cast<char *>(data), static_cast<std::streamsize>(size));
            *got = static_cast<size_t>(self->stream->gcount());
            return !self->stream->bad();
        });
    }
};

/* Asks a function of the form (buffer, capacity, &size) for the size, then for the content. */
template <class Container, class F> Container fill(F call) {
    size_t size = 0;
    check(call(nullptr, 0, &size));
    Container content(size, typename Container::value_type());
    if (size > 0)
        check(call(&content[0], size, &size));
    return content;
}

} // namespace detail

struct message {
    std::string role; /* "system", "user" or "assistant" */
    std::string content;
};

class tokenizer {
public:
    explicit tokenizer(const std::string &path) {
        dsv2_tokenizer *opened;
        check(dsv2_tokenizer_open(path.c_str(), &opened));
        handle_.reset(opened, dsv2_tokenizer_close);
    }

    std::vector<int32_t> encode(const std::string &text, uint32_t flags = 0) const {
        return detail::fill<std::vector<int32_t>>([&](int32_t *tokens, size_t capacity, size_t *n) {
            return dsv2_tokenizer_encode(get(), text.data(), text.size(), flags, tokens, capacity, n);
        });
    }
    std::string decode(const std::vector<int32_t> &tokens, uint32_t flags = 0) const {
        return detail::fill<std::string>([&](char *text, size_t capacity, size_t *size) {
            return dsv2_tokenizer_decode(get(), tokens.data(), tokens.size(), flags, text, capacity, size);
        });
    }
    std::vector<int32_t> encode_chat(const std::vector<message> &messages, size_t first = 0) const {
        std::vector<dsv2_message> plain;
        for (const message &m : messages)
            plain.push_back(dsv2_message{m.role.c_str(), m.content.data(), m.content.size()});
        return detail::fill<std::vector<int32_t>>([&](int32_t *tokens, size_t capacity, size_t *n) {
            return dsv2_chat_encode(get(), plain.data(), plain.size(), first, tokens, capacity, n);
        });
    }
    /* A conversation with tools, parts, an open reply or variables of the template. */
    std::vector<int32_t> encode_chat(dsv2_chat chat) const {
        chat.struct_size = sizeof chat;
        return detail::fill<std::vector<int32_t>>([&](int32_t *tokens, size_t capacity, size_t *n) {
            return dsv2_chat_prompt(get(), &chat, tokens, capacity, n);
        });
    }
    /* The text of the checkpoint's chat template; empty: it has none. */
    std::string chat_template() const {
        const char *text;
        size_t size;
        check(dsv2_chat_template(get(), &text, &size));
        return std::string(text, size);
    }
    std::vector<int32_t> encode_fim(const std::string &prefix, const std::string &suffix) const {
        return detail::fill<std::vector<int32_t>>([&](int32_t *tokens, size_t capacity, size_t *n) {
            return dsv2_fim_encode(get(), prefix.data(), prefix.size(), suffix.data(), suffix.size(), tokens, capacity,
                                   n);
        });
    }
    /* The bytes of one token; special tokens give their spelling. */
    std::string text(int32_t token) const {
        const char *bytes;
        size_t size;
        check(dsv2_token_text(get(), token, &bytes, &size));
        return std::string(bytes, size);
    }
    /* The id of the token that `text` spells exactly; -1 if there is none. */
    int32_t find(const std::string &text) const {
        int32_t token;
        check(dsv2_tokenizer_find(get(), text.data(), text.size(), &token));
        return token;
    }
    dsv2_tokenizer_info info() const {
        dsv2_tokenizer_info info = make<dsv2_tokenizer_info>();
        check(dsv2_tokenizer_get_info(get(), &info));
        return info;
    }
    const dsv2_tokenizer *get() const noexcept { return handle_.get(); }

private:
    friend class model;
    explicit tokenizer(std::shared_ptr<const dsv2_tokenizer> handle) : handle_(std::move(handle)) {}

    std::shared_ptr<const dsv2_tokenizer> handle_;
};

/* A copy of the counts of a session or model. */
class routing {
public:
    explicit routing(dsv2_routing *owned) : handle_(owned) {}

    dsv2_routing_info info() const {
        dsv2_routing_info info = make<dsv2_routing_info>();
        check(dsv2_routing_get_info(get(), &info));
        return info;
    }
    /* One entry per routed expert of a layer. */
    std::vector<dsv2_expert_load> experts(uint32_t layer) const {
        std::vector<dsv2_expert_load> experts(info().n_routed_experts);
        check(dsv2_routing_experts(get(), layer, experts.data()));
        return experts;
    }
    dsv2_routing_balance measure(uint32_t layer, uint32_t n_devices = 0, uint32_t max_devices = 0) const {
        dsv2_routing_balance balance = make<dsv2_routing_balance>();
        check(dsv2_routing_measure(get(), layer, n_devices, max_devices, &balance));
        return balance;
    }
    void merge(const routing &other) { check(dsv2_routing_merge(get(), other.get())); }
    dsv2_routing *get() const noexcept { return handle_.get(); }

private:
    struct close {
        void operator()(dsv2_routing *handle) const noexcept { dsv2_routing_free(handle); }
    };
    std::unique_ptr<dsv2_routing, close> handle_;
};

class model {
public:
    /* `progress`, if not empty, takes the place of the two progress fields of the options. */
    explicit model(const std::string &path, dsv2_model_options options = make<dsv2_model_options>(),
                   progress_function progress = nullptr) {
        detail::progress relay(std::move(progress));
        if (relay.callback()) {
            options.progress = relay.callback();
            options.progress_user = &relay;
        }
        dsv2_model *opened;
        relay.check(dsv2_model_open(path.c_str(), &options, &opened));
        handle_.reset(opened, dsv2_model_close);
    }

    /* What opening the model at `path` would take. */
    static dsv2_bytes_needed_info bytes_needed(const std::string &path,
                                               dsv2_model_options options = make<dsv2_model_options>()) {
        dsv2_bytes_needed_info info = make<dsv2_bytes_needed_info>();
        check(dsv2_model_bytes_needed(path.c_str(), &options, &info));
        return info;
    }

    dsv2_model_info info() const {
        dsv2_model_info info = make<dsv2_model_info>();
        check(dsv2_model_get_info(get(), &info));
        return info;
    }
    dsv2_memory_info memory() const {
        dsv2_memory_info info = make<dsv2_memory_info>();
        check(dsv2_model_get_memory(get(), &info));
        return info;
    }
    /* The tokens that end a text. */
    std::vector<int32_t> end_tokens() const {
        const int32_t *tokens;
        size_t n;
        check(dsv2_model_end_tokens(get(), &tokens, &n));
        return std::vector<int32_t>(tokens, tokens + n);
    }
    bool is_end(int32_t token) const noexcept { return dsv2_model_is_end(get(), token) != 0; }
    /* The checkpoint's own tokenizer; throws, with the reason, if it has none or none that can be used. */
    dsv2::tokenizer tokenizer() const {
        const dsv2_tokenizer *own = dsv2_model_tokenizer(get());
        if (!own)
            throw error(DSV2_ERROR_UNSUPPORTED, dsv2_last_error());
        return dsv2::tokenizer(std::shared_ptr<const dsv2_tokenizer>(handle_, own));
    }
    dsv2::routing routing(dsv2_routing_tokens which = DSV2_ROUTING_ALL) const {
        dsv2_routing *copied;
        check(dsv2_model_routing(get(), which, &copied));
        return dsv2::routing(copied);
    }
    void reset_routing() const { check(dsv2_model_routing_reset(get())); }
    dsv2_model *get() const noexcept { return handle_.get(); }

private:
    std::shared_ptr<dsv2_model> handle_;
};

struct step_item;

class session {
public:
    explicit session(const model &model, const dsv2_session_options &options = make<dsv2_session_options>()) {
        dsv2_session *opened;
        check(dsv2_session_open(model.get(), &options, &opened));
        handle_.reset(opened);
        vocab_size_ = model.info().vocab_size;
    }

    void feed(const int32_t *tokens, size_t n) { check_callback(dsv2_session_feed(get(), tokens, n)); }
    void feed(const std::vector<int32_t> &tokens) { feed(tokens.data(), tokens.size()); }
    int32_t sample() {
        int32_t token;
        check(dsv2_session_sample(get(), &token));
        return token;
    }
    void set_sampling(const dsv2_sampling &sampling) { check(dsv2_session_set_sampling(get(), &sampling)); }
    void seed(uint64_t seed) { check(dsv2_session_seed(get(), seed)); }
    /* vocab_size() floats, not copied. */
    const float *logits() {
        const float *logits;
        check(dsv2_session_logits(get(), &logits));
        return logits;
    }
    uint32_t vocab_size() const noexcept { return vocab_size_; }
    std::vector<dsv2_token_probability> top_tokens(size_t k) {
        std::vector<dsv2_token_probability> top(k);
        check(dsv2_session_top_tokens(get(), k, top.data()));
        return top;
    }
    float log_probability(int32_t token) {
        float value;
        check(dsv2_session_log_probability(get(), token, &value));
        return value;
    }
    size_t length() {
        size_t n;
        check(dsv2_session_length(get(), &n));
        return n;
    }
    std::vector<int32_t> tokens() {
        return detail::fill<std::vector<int32_t>>(
            [&](int32_t *tokens, size_t capacity, size_t *n) {
                return dsv2_session_tokens(get(), tokens, capacity, n);
            });
    }
    uint64_t bytes_per_token() const {
        uint64_t bytes;
        check(dsv2_session_bytes_per_token(get(), &bytes));
        return bytes;
    }
    void truncate(size_t n) { check(dsv2_session_truncate(get(), n)); }
    session fork(size_t n) {
        dsv2_session *copy;
        check(dsv2_session_fork(get(), n, &copy));
        return session(copy, vocab_size_);
    }
    session fork() { return fork(length()); }
    /* From any thread; the session must not be moved or destroyed meanwhile. */
    void cancel() noexcept { dsv2_session_cancel(get()); }
    /* Sets the progress function of feeds and steps from now on; an empty function removes it. */
    void set_progress(progress_function progress) {
        std::unique_ptr<detail::progress> relay(new detail::progress(std::move(progress)));
        check(dsv2_session_set_progress(get(), relay->callback(), relay.get()));
        progress_ = std::move(relay);
    }

    void save(const std::string &path, const dsv2_save_options &options = make<dsv2_save_options>()) {
        check(dsv2_session_save(get(), path.c_str(), &options));
    }
    void save(std::ostream &stream, const dsv2_save_options &options = make<dsv2_save_options>()) {
        detail::sink sink;
        sink.stream = &stream;
        sink.check(dsv2_session_save_to(get(), detail::sink::write, &sink, &options));
    }
    /* Both restore functions return how many tokens were restored. */
    size_t restore(const std::string &path, const dsv2_restore_options &options = make<dsv2_restore_options>()) {
        size_t reused;
        check(dsv2_session_restore(get(), path.c_str(), &options, &reused));
        return reused;
    }
    size_t restore(std::istream &stream, const dsv2_restore_options &options = make<dsv2_restore_options>()) {
        detail::source source;
        source.stream = &stream;
        size_t reused;
        source.check(dsv2_session_restore_from(get(), detail::source::read, &source, &options, &reused));
        return reused;
    }

    dsv2::routing routing(dsv2_routing_tokens which = DSV2_ROUTING_ALL) {
        dsv2_routing *copied;
        check(dsv2_session_routing(get(), which, &copied));
        return dsv2::routing(copied);
    }
    void reset_routing() { check(dsv2_session_routing_reset(get())); }
    dsv2_session *get() const noexcept { return handle_.get(); }

private:
    friend void step(const model &model, std::vector<step_item> &items);

    session(dsv2_session *owned, uint32_t vocab_size) : handle_(owned), vocab_size_(vocab_size) {}

    void check_callback(dsv2_status status) {
        if (progress_)
            progress_->check(status);
        else
            check(status);
    }

    struct close {
        void operator()(dsv2_session *handle) const noexcept { dsv2_session_close(handle); }
    };
    std::unique_ptr<detail::progress> progress_; /* outlives the handle, which may call it */
    std::unique_ptr<dsv2_session, close> handle_;
    uint32_t vocab_size_;
};

/* One session's part in a step. */
struct step_item {
    dsv2::session *session;
    std::vector<int32_t> tokens; /* to append, at least one */
    float *logits;               /* NULL, or room for tokens.size() rows of vocab_size floats */
    dsv2_status status;          /* out, also when step throws */
};

/* One pass over many sessions. */
inline void step(const model &model, std::vector<step_item> &items) {
    std::vector<dsv2_step_item> plain;
    for (const step_item &item : items) {
        plain.push_back(make<dsv2_step_item>());
        plain.back().session = item.session->get();
        plain.back().tokens = item.tokens.data();
        plain.back().n_tokens = item.tokens.size();
        plain.back().logits = item.logits;
    }
    const dsv2_status status = dsv2_step(model.get(), plain.data(), plain.size());
    for (size_t i = 0; i < items.size(); i++)
        items[i].status = plain[i].status;
    std::exception_ptr thrown;
    for (const step_item &item : items)
        if (item.session->progress_ && item.session->progress_->thrown) {
            thrown = item.session->progress_->thrown;
            item.session->progress_->thrown = nullptr;
        }
    if (thrown)
        std::rethrow_exception(thrown);
    check(status);
}

inline dsv2_snapshot_info inspect_snapshot(const std::string &path) {
    dsv2_snapshot_info info = make<dsv2_snapshot_info>();
    check(dsv2_snapshot_inspect(path.c_str(), &info));
    return info;
}

} // namespace dsv2

#endif
