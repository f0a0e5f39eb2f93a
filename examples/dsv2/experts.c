/* dsv2 experts: how a text uses a model's routed experts. */
#include "common.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* What the reports tell. Loads are relative: each expert would have 1 if all were used alike. */
typedef struct report {
    const char *model, *text;
    dsv2_routing_info info;
    size_t context, n_windows;
    uint32_t n_devices, limit; /* D and M of the measures */
    const char *device;        /* what D counts: "group" (the model's) or "device" */
    uint32_t n_layers;         /* layers with experts */
    uint32_t *layers;          /* their numbers */
    dsv2_routing_balance *balance;
    dsv2_expert_load *experts; /* [n_layers][n_routed_experts] */
} report;

static const dsv2_expert_load *load_at(const report *r, uint32_t row, uint32_t expert)
{
    return &r->experts[(size_t)row * r->info.n_routed_experts + expert];
}

static double relative_load(const report *r, uint32_t row, uint32_t expert)
{
    return (double)load_at(r, row, expert)->chosen * r->info.n_routed_experts /
           ((double)r->info.n_tokens * r->info.num_experts_per_tok);
}

/* ---- reading the text ---- */

/* Reads the windows of `dsv2 perplexity` in the same way: after BOS, if there is one, up to the token before the last.
 * `tokens` has room for BOS before its first token. */
static int read_windows(dsv2_session *session, int32_t *tokens, size_t n, int32_t bos, report *r)
{
    for (size_t begin = 0; begin < n; begin += r->context) {
        size_t count = n - begin < r->context ? n - begin : r->context;
        int32_t *window = tokens + begin;
        if (bos >= 0)
            *--window = bos;
        else
            count--;
        if (count == 0)
            continue;
        if (dsv2_session_truncate(session, 0) != DSV2_OK || dsv2_session_feed(session, window, count) != DSV2_OK)
            return fail_library();
        r->n_windows++;
    }
    return EXIT_OK;
}

static int read_text(dsv2_model *model, dsv2_cache_type cache_type, report *r)
{
    const dsv2_tokenizer *tokenizer = need_tokenizer(model, r->model);
    if (tokenizer == NULL)
        return EXIT_FAILED;
    int status = EXIT_FAILED;
    size_t size, n;
    char *text = read_all(r->text, &size);
    int32_t *encoded = text != NULL ? encode_text(tokenizer, text, size, 0, &n) : NULL;
    int32_t *tokens = encoded != NULL ? malloc((n + 1) * sizeof *tokens) : NULL;
    dsv2_session *session = tokens != NULL ? open_session(model, cache_type, DSV2_ATTENTION_AUTO, false) : NULL;
    if (encoded != NULL && tokens == NULL)
        fail("no memory for %zu tokens", n);
    if (session != NULL) {
        memcpy(tokens + 1, encoded, n * sizeof *tokens);
        status = read_windows(session, tokens + 1, n, model_info(model).bos_token_id, r);
    }
    dsv2_session_close(session);
    free(tokens);
    free(encoded);
    free(text);
    return status;
}

/* ---- gathering ---- */

static void report_free(report *r)
{
    free(r->layers);
    free(r->balance);
    free(r->experts);
}

static int gather(const dsv2_routing *routing, report *r)
{
    r->info.struct_size = sizeof r->info;
    if (dsv2_routing_get_info(routing, &r->info) != DSV2_OK)
        return fail_library();
    if (r->info.n_tokens == 0)
        return fail("%s: has no token to read", r->text);
    r->device = r->n_devices == 0 ? "group" : "device";
    r->n_devices = r->n_devices > 0 ? r->n_devices : r->info.n_group;
    if (r->limit == 0)
        r->limit = r->info.topk_group < r->n_devices ? r->info.topk_group : r->n_devices;
    size_t n = r->info.num_hidden_layers;
    r->layers = calloc(n, sizeof *r->layers);
    r->balance = calloc(n, sizeof *r->balance);
    r->experts = calloc(n * r->info.n_routed_experts, sizeof *r->experts);
    if (r->layers == NULL || r->balance == NULL || r->experts == NULL)
        return fail("no memory for %zu layers of experts", n);
    for (uint32_t l = 0; l < n; l++) {
        if (dsv2_routing_experts(routing, l, r->experts + (size_t)r->n_layers * r->info.n_routed_experts) != DSV2_OK)
            continue; /* a dense layer */
        r->balance[r->n_layers].struct_size = sizeof *r->balance;
        if (dsv2_routing_measure(routing, l, r->n_devices, r->limit, &r->balance[r->n_layers]) != DSV2_OK)
            return fail_library();
        r->layers[r->n_layers++] = l;
    }
    return EXIT_OK;
}

/* ---- the terminal ---- */

static void print_summary(const report *r)
{
    printf("%llu tokens of %s in %zu windows of %zu\n", (unsigned long long)r->info.n_tokens, r->text, r->n_windows,
           r->context);
    printf("%u layers with %u experts, %u chosen for each token\n", r->n_layers, r->info.n_routed_experts,
           r->info.num_experts_per_tok);
    if (r->n_devices == 1)
        return;
    uint32_t most = 0;
    double mean = 0;
    for (uint32_t i = 0; i < r->n_layers; i++) {
        most = r->balance[i].max_devices_reached > most ? r->balance[i].max_devices_reached : most;
        mean += r->balance[i].mean_devices_reached / r->n_layers;
    }
    printf("%u %ss of experts: a token reached at most %u (the limit: %u), %.3f on average\n", r->n_devices, r->device,
           most, r->limit, mean);
}

static void print_table(const report *r)
{
    printf("\nlayer  max/mean  entropy    Jain  unused  L_ExpBal  L_DevBal  L_CommBal  dropped  %ss reached\n",
           r->device);
    for (uint32_t i = 0; i < r->n_layers; i++) {
        const dsv2_routing_balance *b = &r->balance[i];
        printf("%5u  %8.3f  %7.4f  %6.4f  %6u  %8.4f  %8.4f  %9.4f  %6.2f%%  %5.3f, at most %u\n", r->layers[i],
               b->max_over_mean, r->info.n_routed_experts > 1 ? b->entropy / log(r->info.n_routed_experts) : 1.0,
               b->jain_index, b->never_used, b->expert_balance_loss, b->device_balance_loss,
               b->communication_balance_loss, 100 * b->dropped_share, b->mean_devices_reached, b->max_devices_reached);
    }
    printf("entropy: 1 is even; losses: with alpha = 1, for %u %s%s of which a token may reach %u\n", r->n_devices,
           r->device, r->n_devices == 1 ? "" : "s", r->limit);
}

typedef struct place {
    uint64_t chosen;
    uint32_t row, expert;
} place;

static int by_load(const void *a, const void *b)
{
    const place *x = a, *y = b;
    if (x->chosen != y->chosen)
        return x->chosen < y->chosen ? 1 : -1;
    return x->row != y->row ? (x->row > y->row) - (x->row < y->row) : (x->expert > y->expert) - (x->expert < y->expert);
}

static void print_place(const report *r, const place *p)
{
    printf("%5u %6u %9llu  %5.2fx", r->layers[p->row], p->expert, (unsigned long long)p->chosen,
           relative_load(r, p->row, p->expert));
}

static int print_extremes(const report *r)
{
    enum { SHOWN = 8 };
    size_t n = (size_t)r->n_layers * r->info.n_routed_experts, shown = n / 2 < SHOWN ? n / 2 : SHOWN;
    place *places = malloc(n * sizeof *places);
    if (places == NULL)
        return fail("no memory for %zu experts", n);
    for (size_t i = 0; i < n; i++) {
        uint32_t row = (uint32_t)(i / r->info.n_routed_experts), expert = (uint32_t)(i % r->info.n_routed_experts);
        places[i] = (place){load_at(r, row, expert)->chosen, row, expert};
    }
    qsort(places, n, sizeof *places, by_load);
    printf("\nmost used                        least used\n"
           "layer expert    chosen    load  |  layer expert    chosen    load\n");
    for (size_t i = 0; i < shown; i++) {
        print_place(r, &places[i]);
        printf("  |  ");
        print_place(r, &places[n - 1 - i]);
        printf("\n");
    }
    free(places);
    return EXIT_OK;
}

/* Colours of a 256-colour terminal, from at most half the even load to at least twice; shades for other terminals. */
static const uint8_t colours[] = {25, 32, 74, 117, 195, 231, 224, 217, 210, 167, 124};
static const char shades[] = " .:-=+*#%@";
enum { N_COLOURS = sizeof colours / sizeof *colours, N_SHADES = sizeof shades - 1 };

static void print_cell(const report *r, uint32_t row, uint32_t expert, bool coloured, int width)
{
    double load = relative_load(r, row, expert);
    if (!coloured) {
        int shade = (int)(load / 2 * N_SHADES);
        for (int i = 0; i < width; i++)
            putchar(shades[shade < N_SHADES ? shade : N_SHADES - 1]);
        return;
    }
    if (load == 0) {
        printf("%*s", width, "x");
        return;
    }
    int colour = (int)floor((log2(load) + 1) / 2 * (N_COLOURS - 1) + 0.5);
    printf("\033[48;5;%dm%*s\033[0m", colours[colour < 0 ? 0 : colour < N_COLOURS ? colour : N_COLOURS - 1], width, "");
}

static void print_legend(bool coloured)
{
    if (!coloured) {
        printf("\nload: '%c' under 0.2 of the even one,", shades[0]);
        for (int i = 1; i < N_SHADES; i++)
            printf(" %c", shades[i]);
        printf(" in steps of 0.2, '%c' from 1.8 on\n", shades[N_SHADES - 1]);
        return;
    }
    printf("\nload: half ");
    for (int i = 0; i < N_COLOURS; i++)
        printf("\033[48;5;%dm  \033[0m", colours[i]);
    printf(" twice the even one; x: never used\n");
}

/* Layers down, experts across, in as many pieces as the terminal's width needs. */
static void print_map(const report *r)
{
    enum { LABEL = 7, PLAIN_WIDTH = 100 };
    struct winsize window = {0};
    bool terminal = isatty(STDOUT_FILENO), coloured = terminal && getenv("NO_COLOR") == NULL;
    uint32_t n = r->info.n_routed_experts, room = PLAIN_WIDTH;
    if (terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > LABEL + 8)
        room = window.ws_col;
    uint32_t width = 2 * n + LABEL <= room ? 2 : 1, piece = (room - LABEL) / width;
    print_legend(coloured);
    for (uint32_t first = 0; first < n; first += piece) {
        uint32_t end = n - first < piece ? n : first + piece;
        printf("\nlayer  ");
        for (uint32_t e = first; e < end;) {
            char label[16];
            uint32_t length = (uint32_t)snprintf(label, sizeof label, "%u", e), cells = 8 / width;
            bool fits = e == first || (end - e) * width >= length;
            printf("%-*s", (int)((end - e < cells ? end - e : cells) * width), fits ? label : "");
            e += cells;
        }
        printf("\n");
        for (uint32_t row = 0; row < r->n_layers; row++) {
            printf("%5u  ", r->layers[row]);
            for (uint32_t e = first; e < end; e++)
                print_cell(r, row, e, coloured, (int)width);
            printf("\n");
        }
    }
}

/* ---- files ---- */

static void write_json(FILE *out, const report *r)
{
    fprintf(out, "{\"model\": ");
    write_json_string(out, r->model);
    fprintf(out, ", \"text\": ");
    write_json_string(out, r->text);
    fprintf(out,
            ", \"tokens\": %llu, \"windows\": %zu, \"context\": %zu,\n"
            " \"num_hidden_layers\": %u, \"n_routed_experts\": %u, \"num_experts_per_tok\": %u, \"n_group\": %u, "
            "\"topk_group\": %u, \"n_devices\": %u, \"max_devices\": %u,\n"
            " \"layers\": [",
            (unsigned long long)r->info.n_tokens, r->n_windows, r->context, r->info.num_hidden_layers,
            r->info.n_routed_experts, r->info.num_experts_per_tok, r->info.n_group, r->info.topk_group, r->n_devices,
            r->limit);
    for (uint32_t i = 0; i < r->n_layers; i++) {
        const dsv2_routing_balance *b = &r->balance[i];
        fprintf(out,
                "%s\n  {\"layer\": %u, \"expert_balance_loss\": %.9g, \"device_balance_loss\": %.9g, "
                "\"communication_balance_loss\": %.9g,\n"
                "   \"max_over_mean\": %.9g, \"entropy\": %.9g, \"jain_index\": %.9g, \"never_used\": %u, "
                "\"dropped_share\": %.9g,\n"
                "   \"max_devices_reached\": %u, \"mean_devices_reached\": %.9g,\n   \"experts\": [",
                i > 0 ? "," : "", r->layers[i], b->expert_balance_loss, b->device_balance_loss,
                b->communication_balance_loss, b->max_over_mean, b->entropy, b->jain_index, b->never_used,
                b->dropped_share, b->max_devices_reached, b->mean_devices_reached);
        for (uint32_t e = 0; e < r->info.n_routed_experts; e++)
            fprintf(out, "%s\n    {\"chosen\": %llu, \"gate_sum\": %.17g, \"affinity_sum\": %.17g}", e > 0 ? "," : "",
                    (unsigned long long)load_at(r, i, e)->chosen, load_at(r, i, e)->gate_sum,
                    load_at(r, i, e)->affinity_sum);
        fprintf(out, "]}");
    }
    fprintf(out, "]}\n");
}

static void write_csv(FILE *out, const report *r)
{
    fprintf(out, "layer,expert,chosen,load,gate_sum,affinity_sum\n");
    for (uint32_t i = 0; i < r->n_layers; i++)
        for (uint32_t e = 0; e < r->info.n_routed_experts; e++)
            fprintf(out, "%u,%u,%llu,%.6f,%.17g,%.17g\n", r->layers[i], e, (unsigned long long)load_at(r, i, e)->chosen,
                    relative_load(r, i, e), load_at(r, i, e)->gate_sum, load_at(r, i, e)->affinity_sum);
}

static void write_xml(FILE *out, const char *text)
{
    for (const unsigned char *s = (const unsigned char *)text; *s != '\0'; s++) {
        if (*s == '&' || *s == '<' || *s == '>')
            fprintf(out, "&#%d;", *s);
        else
            fputc(*s < 0x20 || *s > 0x7e ? '?' : *s, out);
    }
}

/* The last part of a path: a caption has room for no more. */
static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL && slash[1] != '\0' ? slash + 1 : path;
}

/* Blue below the even load, white at it, red above. The ends are 1/limit and limit times the even load. Colours between
 * are interpolated from five of ColorBrewer's RdBu, which people with any colour vision tell apart. */
static void colour_of(double load, double limit, char colour[8])
{
    static const uint8_t stops[][3] = {
        {33, 102, 172}, {146, 197, 222}, {247, 247, 247}, {244, 165, 130}, {178, 24, 43}};
    double at = load > 0 ? (log2(load) / log2(limit) + 1) / 2 * 4 : 0;
    at = at < 0 ? 0 : at > 4 ? 4 : at;
    int i = at < 4 ? (int)at : 3;
    int mixed[3];
    for (int c = 0; c < 3; c++)
        mixed[c] = (int)(stops[i][c] + (stops[i + 1][c] - stops[i][c]) * (at - i) + 0.5);
    snprintf(colour, 8, "#%02x%02x%02x", (unsigned)mixed[0] & 255, (unsigned)mixed[1] & 255, (unsigned)mixed[2] & 255);
}

/* Where things stand on the page, in pixels. */
typedef struct page {
    double left, top, cell_width, cell_height, map_width, map_height, width, height, limit;
} page;

static page lay_out_page(const report *r)
{
    page p = {.left = 64, .top = r->n_devices > 1 ? 116 : 96};
    double n = r->info.n_routed_experts, largest = 1;
    p.cell_width = 800 / n > 40 ? 40 : 800 / n < 5 ? 5 : floor(800 / n);
    p.cell_height = r->n_layers <= 12 ? 26 : r->n_layers <= 30 ? 18 : 12;
    p.map_width = p.cell_width * n;
    p.map_height = p.cell_height * r->n_layers;
    p.width = p.left + (p.map_width > 420 ? p.map_width : 420) + 130;
    p.height = p.top + p.map_height + 96;
    for (uint32_t i = 0; i < r->n_layers; i++)
        for (uint32_t e = 0; e < r->info.n_routed_experts; e++) {
            double load = relative_load(r, i, e), far = load > 1 ? load : load > 0 ? 1 / load : 1;
            largest = far > largest ? far : largest;
        }
    static const double limits[] = {1.5, 2, 3, 4, 8};
    for (size_t i = 0; i < sizeof limits / sizeof *limits && p.limit < largest; i++)
        p.limit = limits[i];
    return p;
}

static void write_svg_head(FILE *out, const report *r, const page *p)
{
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" height=\"%.0f\""
            " role=\"img\"\n"
            " font-family=\"Inter, 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif\""
            " font-size=\"12\" fill=\"#333\">\n"
            "<title>Load of the routed experts</title>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
            "<text x=\"%.0f\" y=\"32\" font-size=\"18\" font-weight=\"600\" fill=\"#111\">Expert load of ",
            p->width, p->height, p->width, p->height, p->left);
    write_xml(out, base_name(r->model));
    fprintf(out, "</text>\n<text x=\"%.0f\" y=\"52\" fill=\"#666\">%llu tokens of ", p->left,
            (unsigned long long)r->info.n_tokens);
    write_xml(out, base_name(r->text));
    fprintf(out, " &#183; %u of %u experts chosen for each token", r->info.num_experts_per_tok,
            r->info.n_routed_experts);
    if (r->n_devices > 1) {
        uint32_t most = 0;
        for (uint32_t i = 0; i < r->n_layers; i++)
            most = r->balance[i].max_devices_reached > most ? r->balance[i].max_devices_reached : most;
        fprintf(out,
                "</text>\n<text x=\"%.0f\" y=\"70\" fill=\"#666\">a token reached at most %u of %u %ss (the limit: %u)",
                p->left, most, r->n_devices, r->device, r->limit);
    }
    fprintf(out, "</text>\n");
}

static void write_svg_map(FILE *out, const report *r, const page *p)
{
    fprintf(out, "<g text-anchor=\"end\">\n");
    for (uint32_t i = 0; i < r->n_layers; i++)
        fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%d\">%u</text>\n", p->left - 8,
                p->top + (i + 0.5) * p->cell_height + 4, p->cell_height < 14 ? 10 : 12, r->layers[i]);
    fprintf(out, "</g>\n<g shape-rendering=\"crispEdges\" stroke=\"#fff\" stroke-width=\"%s\">\n",
            p->cell_width < 8 ? "0.5" : "1");
    for (uint32_t i = 0; i < r->n_layers; i++) {
        for (uint32_t e = 0; e < r->info.n_routed_experts; e++) {
            char colour[8] = "#222222";
            double load = relative_load(r, i, e);
            if (load > 0)
                colour_of(load, p->limit, colour);
            fprintf(out,
                    "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\">"
                    "<title>layer %u, expert %u: %.2fx</title></rect>\n",
                    p->left + e * p->cell_width, p->top + i * p->cell_height, p->cell_width, p->cell_height, colour,
                    r->layers[i], e, load);
        }
    }
    fprintf(out, "</g>\n<g stroke=\"#888\" shape-rendering=\"crispEdges\">\n");
    for (uint32_t d = 1; d < r->n_devices; d++)
        fprintf(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                p->left + d * p->map_width / r->n_devices, p->left + d * p->map_width / r->n_devices, p->top - 4,
                p->top + p->map_height + 4);
    fprintf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"none\"/>\n</g>\n", p->left, p->top,
            p->map_width, p->map_height);
}

/* Expert numbers below the map; at its right how uneven each layer is. */
static void write_svg_axes(FILE *out, const report *r, const page *p)
{
    uint32_t n = r->info.n_routed_experts, step = 1;
    while (step * p->cell_width < 24)
        step *= 2;
    fprintf(out, "<g text-anchor=\"middle\">\n");
    for (uint32_t e = 0; e < n; e += step)
        fprintf(out, "<text x=\"%.1f\" y=\"%.1f\">%u</text>\n", p->left + (e + 0.5) * p->cell_width,
                p->top + p->map_height + 18, e);
    fprintf(out, "</g>\n<g fill=\"#666\">\n<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">layer</text>\n", p->left - 8,
            p->top - 10);
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\">busiest</text>\n", p->left + p->map_width + 12, p->top - 10);
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">expert</text>\n</g>\n", p->left + p->map_width / 2,
            p->top + p->map_height + 36);
    for (uint32_t i = 0; i < r->n_layers; i++)
        fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%d\">%.2f&#215;</text>\n", p->left + p->map_width + 12,
                p->top + (i + 0.5) * p->cell_height + 4, p->cell_height < 14 ? 10 : 12, r->balance[i].max_over_mean);
}

static void write_svg_legend(FILE *out, const page *p)
{
    enum { STEPS = 60, WIDTH = 240 };
    double y = p->top + p->map_height + 54;
    fprintf(out, "<g shape-rendering=\"crispEdges\">\n");
    for (int i = 0; i < STEPS; i++) {
        char colour[8];
        colour_of(pow(p->limit, 2 * (i + 0.5) / STEPS - 1), p->limit, colour);
        fprintf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"10\" fill=\"%s\"/>\n",
                p->left + i * (double)WIDTH / STEPS, y, (double)WIDTH / STEPS + 0.5, colour);
    }
    fprintf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"10\" height=\"10\" fill=\"#222\"/>\n</g>\n", p->left + WIDTH + 80,
            y);
    fprintf(out, "<g fill=\"#666\">\n<text x=\"%.1f\" y=\"%.1f\">1/%g&#215;</text>\n", p->left, y + 26, p->limit);
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">even load</text>\n", p->left + WIDTH / 2.0,
            y + 26);
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%g&#215;</text>\n", p->left + WIDTH, y + 26,
            p->limit);
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\">never used</text>\n</g>\n", p->left + WIDTH + 96, y + 9);
}

static void write_svg(FILE *out, const report *r)
{
    page p = lay_out_page(r);
    write_svg_head(out, r, &p);
    write_svg_map(out, r, &p);
    write_svg_axes(out, r, &p);
    write_svg_legend(out, &p);
    fprintf(out, "</svg>\n");
}

/* NULL for a path: not asked for. */
static int write_file(const char *path, void (*write)(FILE *, const report *), const report *r)
{
    if (path == NULL)
        return EXIT_OK;
    FILE *out = fopen(path, "w");
    if (out == NULL)
        return fail("%s: cannot create: %s", path, strerror(errno));
    write(out, r);
    bool failed = ferror(out) != 0;
    failed = fclose(out) != 0 || failed;
    return failed ? fail("%s: cannot write: %s", path, strerror(errno)) : EXIT_OK;
}

/* ---- the command ---- */

typedef struct outputs {
    const char *json, *csv, *svg;
} outputs;

static int report_on(dsv2_model *model, dsv2_cache_type cache_type, const outputs *files, report *r)
{
    enum { DEFAULT_CONTEXT = 512 };
    dsv2_model_info info = model_info(model);
    size_t room = info.max_position_embeddings;
    r->context = r->context > 0 ? r->context : DEFAULT_CONTEXT;
    r->context = r->context < room ? r->context : room;
    if (info.n_routed_experts == 0)
        return fail("%s: is a dense model, it has no routed experts", r->model);
    if (r->n_devices > info.n_routed_experts || (r->n_devices > 0 && info.n_routed_experts % r->n_devices != 0))
        return fail_usage("--devices: %u does not divide the model's %u experts", r->n_devices, info.n_routed_experts);
    if (r->limit > (r->n_devices > 0 ? r->n_devices : info.n_group))
        return fail_usage("--max-devices: %u, of %u devices", r->limit, r->n_devices > 0 ? r->n_devices : info.n_group);
    int status = read_text(model, cache_type, r);
    if (status != EXIT_OK)
        return status;
    dsv2_routing *routing;
    if (dsv2_model_routing(model, DSV2_ROUTING_ALL, &routing) != DSV2_OK)
        return fail_library();
    status = gather(routing, r);
    dsv2_routing_free(routing);
    if (status != EXIT_OK)
        return status;
    print_summary(r);
    print_table(r);
    status = print_extremes(r);
    if (status == EXIT_OK) {
        print_map(r);
        status = finish_output();
    }
    if (status == EXIT_OK)
        status = write_file(files->json, write_json, r);
    if (status == EXIT_OK)
        status = write_file(files->csv, write_csv, r);
    return status == EXIT_OK ? write_file(files->svg, write_svg, r) : status;
}

static int run(int argc, char **argv)
{
    model_settings settings = {0};
    outputs files = {0};
    uint64_t context = 0, devices = 0, max_devices = 0;
    const char *operands[2], *kv = NULL;
    dsv2_cache_type cache_type;
    const option_spec options[] = {
        {"json", "FILE", OPTION_TEXT, &files.json, 0, 0, "write all counts and measures as a JSON object"},
        {"csv", "FILE", OPTION_TEXT, &files.csv, 0, 0,
         "write the counts as a table, a line for each expert of each layer"},
        {"svg", "FILE", OPTION_TEXT, &files.svg, 0, 0, "draw the heat map"},
        {"devices", "D", OPTION_COUNT, &devices, 1, UINT32_MAX,
         "measure for experts spread evenly over D devices; default:\nthe groups that the model's router knows"},
        {"max-devices", "M", OPTION_COUNT, &max_devices, 1, UINT32_MAX,
         "devices that a token may be sent to, for L_CommBal;\ndefault: as many groups as the model's router allows"},
        {"context", "N", OPTION_COUNT, &context, 1, UINT32_MAX,
         "tokens of text in a window; default 512, or as many as fit"},
        CACHE_OPTION(kv),
        MODEL_OPTIONS(settings),
    };
    int status = parse_options(&command_experts, argc, argv, options, sizeof options / sizeof *options, operands, 2);
    if (status == GO_ON)
        status = find_cache_type(kv, &cache_type);
    if (status != GO_ON)
        return status;
    dsv2_model *model = open_model(operands[0], &settings);
    if (model == NULL)
        return EXIT_FAILED;
    report r = {.model = operands[0], .text = operands[1], .context = context, .n_devices = (uint32_t)devices,
                .limit = (uint32_t)max_devices};
    status = report_on(model, cache_type, &files, &r);
    report_free(&r);
    dsv2_model_close(model);
    return status;
}

const command command_experts = {
    "experts",
    "MODEL TEXTFILE [OPTION...]",
    "Reports how a text uses a model's routed experts: balance by layer, a heat map.",
    "The text is read as 'dsv2 perplexity' reads it: cut into windows of N tokens, each by itself after the\n"
    "beginning-of-sequence token and up to the token before its last. Load 1 is what an expert has if all\n"
    "are used alike. The losses are those of the DeepSeek-V2 report, section 2.2.3, with alpha = 1; dropped\n"
    "is the share of (token, expert) pairs over a device's capacity at capacity factor 1, section 2.2.4.",
    run,
};
