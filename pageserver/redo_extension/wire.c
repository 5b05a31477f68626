/*
 * Frames in, frames out: see redo.h for their layout.
 *
 * Replies are collected and written when no whole request is waiting, so that a burst of requests costs two system
 * calls each way. Nothing in here raises a PostgreSQL error: what cannot be said in a reply ends the process.
 */
#include "redo.h"

#include <unistd.h>

#define INPUT_BYTES (256 * 1024)
#define OUTPUT_BYTES (256 * 1024)
/* Replies are sent at the latest when so many bytes wait, whatever else is to do. */
#define OUTPUT_FLUSH_BYTES (64 * 1024)
#define TEXT_BYTES_MAX 1024

static char *input;
static size_t input_size, input_start, input_end;
static char *output;
static size_t output_len;

static void
fail(int code, const char *why)
{
    if (write(2, why, strlen(why)) < 0)
    { /* nobody reads: there is nothing left to say */
    }
    _exit(code);
}

void
wire_init(void)
{
    input_size = INPUT_BYTES;
    input = malloc(input_size);
    output = malloc(OUTPUT_BYTES);
    if (input == NULL || output == NULL)
        fail(EXIT_MEMORY, "redo: no memory for the pipes\n");
}

void
wire_flush(void)
{
    size_t done = 0;

    while (done < output_len)
    {
        ssize_t n = write(1, output + done, output_len - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            fail(EXIT_IO, "redo: cannot write a reply\n");
        done += n;
    }
    output_len = 0;
}

/* One read: at least one byte more. What we owe is sent first, since we are about to sleep. */
static void
read_more(void)
{
    ssize_t n;

    wire_flush();
    do
        n = read(0, input + input_end, input_size - input_end);
    while (n < 0 && errno == EINTR);
    if (n == 0)
        _exit(0);
    if (n < 0)
        fail(EXIT_IO, "redo: cannot read a request\n");
    input_end += n;
}

static void
set_input_size(size_t size)
{
    char *bigger = realloc(input, size);

    if (bigger == NULL)
        fail(EXIT_MEMORY, "redo: no memory for a request\n");
    input = bigger;
    input_size = size;
}

/* Makes `len` bytes from input_start on available. */
static void
need(size_t len)
{
    if (input_end - input_start >= len)
        return;
    if (input_start >= 8)
    {
        /* By a multiple of 8: frames stay aligned even if we stand in the middle of one that is skipped. */
        size_t shift = input_start & ~(size_t) 7;

        memmove(input, input + shift, input_end - shift);
        input_end -= shift;
        input_start -= shift;
    }
    if (input_size < len + 8)
        set_input_size(len + INPUT_BYTES);
    else if (input_size > 4 * INPUT_BYTES && len <= INPUT_BYTES && input_end <= INPUT_BYTES)
        set_input_size(INPUT_BYTES); /* give back what one long request took */
    while (input_end - input_start < len)
        read_more();
}

static void
skip(size_t len)
{
    while (len > 0)
    {
        size_t step;

        need(1);
        step = Min(len, input_end - input_start);
        input_start += step;
        len -= step;
    }
}

const char *
wire_next_request(FrameHeader *header)
{
    const char *body;

    for (;;)
    {
        need(sizeof(*header));
        memcpy(header, input + input_start, sizeof(*header));
        if (header->mark != REQUEST_MARK || header->body_len % 8 != 0)
            fail(EXIT_PROTOCOL, "redo: not a request\n");
        if (header->body_len <= BODY_BYTES_MAX)
            break;
        input_start += sizeof(*header);
        skip(header->body_len);
        wire_reply_text(header->id, REPLY_REFUSED, "request too long");
        wire_flush_if_idle();
    }
    need(sizeof(*header) + header->body_len);
    body = input + input_start + sizeof(*header);
    input_start += sizeof(*header) + header->body_len;
    return body;
}

char *
wire_page_room(void)
{
    if (output_len + sizeof(FrameHeader) + BLCKSZ > OUTPUT_BYTES)
        wire_flush();
    return output + output_len + sizeof(FrameHeader);
}

static void
put_header(uint64 id, ReplyStatus status, uint32 body_len)
{
    FrameHeader header = {.mark = REPLY_MARK, .type_or_status = status, .body_len = body_len, .id = id};

    memcpy(output + output_len, &header, sizeof(header));
    output_len += sizeof(header) + body_len;
}

void
wire_reply_page(uint64 id)
{
    put_header(id, REPLY_PAGE, BLCKSZ);
}

void
wire_reply_text(uint64 id, ReplyStatus status, const char *text)
{
    size_t len = Min(strlen(text), (size_t) TEXT_BYTES_MAX);
    size_t padded = TYPEALIGN(8, len);
    char *room = wire_page_room();

    memset(room, ' ', padded);
    memcpy(room, text, len);
    put_header(id, status, padded);
}

void
wire_flush_if_idle(void)
{
    size_t waiting = input_end - input_start;
    FrameHeader next;

    if (waiting >= sizeof(next) && output_len < OUTPUT_FLUSH_BYTES)
    {
        memcpy(&next, input + input_start, sizeof(next));
        if (waiting - sizeof(next) >= next.body_len)
            return;
    }
    wire_flush();
}

void
wire_send_hello(const Hello *hello)
{
    memcpy(output, hello, sizeof(*hello));
    output_len = sizeof(*hello);
    wire_flush();
}
