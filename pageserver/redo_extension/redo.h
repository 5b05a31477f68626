/*
 * What the files of this extension know of each other, and the protocol on the pipes.
 *
 * The process reads requests from descriptor 0 and answers on descriptor 1, in the order of the requests. All numbers
 * are little-endian. Every frame is a multiple of 8 bytes long, so that what stands in it is aligned.
 * The other side is `pageserver/src/redo/process/protocol.rs`.
 *
 *   hello, once, when the process is ready and in its sandbox (32 bytes)
 *     0 magic "PGREDO\r\n" | 8 u16 protocol | 10 u16 PostgreSQL major | 12 u32 PG_VERSION_NUM | 16 u32 page size
 *     20 u32 longest body | 24 u32 flags: 1 checksums, 2 wal_log_hints | 28 u32 process id
 *
 *   request: header (16 bytes) and body
 *     0 u16 mark 0x5152 | 2 u16 type: 1 redo | 4 u32 body length | 8 u64 request id
 *     body: 0 u32 tablespace | 4 u32 database | 8 u32 relation | 12 u32 block | 16 u8 fork
 *           17 u8 flags: 1 a base follows | 18 u16 zero | 20 u32 number of records
 *           [8192 bytes of base]
 *           per record: u64 end LSN | u32 length | u32 zero | the XLogRecord | zeroes up to a multiple of 8
 *
 *   reply: header (16 bytes) and body
 *     0 u16 mark 0x5041 | 2 u16 status: 0 page, 1 refused, 2 refused after a PANIC | 4 u32 body length | 8 u64 request id
 *     body: the page (8192 bytes), or a text without a final zero, padded with blanks to a multiple of 8
 *
 * A body longer than the longest is skipped and refused. A frame without its mark ends the process: nothing behind it
 * can be trusted. End of file on descriptor 0 ends the process in order.
 */
#ifndef PAGESERVER_REDO_H
#define PAGESERVER_REDO_H

#include "postgres.h"

#include "access/xlogreader.h"
#include "storage/block.h"
#include "storage/bufpage.h"
#include "common/relpath.h"

#define PROTOCOL_VERSION 1
#define HELLO_MAGIC "PGREDO\r\n"
#define REQUEST_MARK 0x5152
#define REPLY_MARK 0x5041
#define REQUEST_TYPE_REDO 1
#define REQUEST_HAS_BASE 1

/* One record may be longer than a segment, but a chain is cut by who asks. Bounds the memory of this process. */
#define BODY_BYTES_MAX (64 * 1024 * 1024)

/* Exit codes, for the log of the page server. */
#define EXIT_IO 3            /* a pipe broke */
#define EXIT_PROTOCOL 4      /* a frame without its mark */
#define EXIT_MEMORY 5        /* no memory for a request */
#define EXIT_STUCK 6         /* one request used more processor time than any can need */
#define EXIT_WORN 7          /* survived more PANICs than we trust ourselves to survive */

typedef struct Hello
{
    char magic[8];
    uint16 protocol;
    uint16 pg_major;
    uint32 pg_version_num;
    uint32 page_size;
    uint32 body_bytes_max;
    uint32 flags;
    uint32 pid;
} Hello;

typedef struct FrameHeader
{
    uint16 mark;
    uint16 type_or_status;
    uint32 body_len;
    uint64 id;
} FrameHeader;

typedef enum ReplyStatus
{
    REPLY_PAGE = 0,
    REPLY_REFUSED = 1,
    REPLY_PANICKED = 2
} ReplyStatus;

typedef struct RequestHead
{
    uint32 spc_oid;
    uint32 db_oid;
    uint32 rel_number;
    uint32 block_no;
    uint8 fork;
    uint8 flags;
    uint16 zero;
    uint32 record_count;
} RequestHead;

typedef struct RecordHead
{
    uint64 end_lsn;
    uint32 len;
    uint32 zero;
} RecordHead;

StaticAssertDecl(sizeof(Hello) == 32, "hello is 32 bytes on the wire");
StaticAssertDecl(sizeof(FrameHeader) == 16, "a frame header is 16 bytes on the wire");
StaticAssertDecl(sizeof(RequestHead) == 24, "a request head is 24 bytes on the wire");
StaticAssertDecl(sizeof(RecordHead) == 16, "a record head is 16 bytes on the wire");

/* wire.c: frames in, frames out */
extern void wire_init(void);
extern void wire_send_hello(const Hello *hello);
/* The next request and its body, valid until the next call. Oversized bodies are refused here. Never returns at end of file. */
extern const char *wire_next_request(FrameHeader *header);
/* Room for a page in the reply buffer; becomes a reply with `wire_reply_page`. */
extern char *wire_page_room(void);
extern void wire_reply_page(uint64 id);
extern void wire_reply_text(uint64 id, ReplyStatus status, const char *text);
/* Sends what is buffered, unless a whole request is waiting already. */
extern void wire_flush_if_idle(void);
extern void wire_flush(void);

/* pages.c: the relations that stand for those of the record, and their pages in the buffer pool */

/* The target's relation is 0. No built-in resource manager touches two relations in one record; generic WAL up to 5. */
#define FAKE_RELS 8

extern void pages_init(void);
/* Puts `image` (NULL: zeroes) into the pool. */
extern void page_put(int rel, ForkNumber fork, BlockNumber block_no, const char *image);
extern void page_get(int rel, ForkNumber fork, BlockNumber block_no, char *image);
/* Makes a block that nobody asked for look already redone. */
extern void page_poison(int rel, ForkNumber fork, BlockNumber block_no);
/* The same for a page of a heap's maps, which redo changes without a look at its LSN: once is enough. */
extern void page_poison_map(int rel, ForkNumber fork, BlockNumber block_no);
/* Gives a decoded block reference the address of a fake relation. */
extern void page_rename(DecodedBkpBlock *block, int rel);
/* Drops every page; the pool is as if never used. */
extern void pages_drop_all(void);
/* False when so many pages more would not find room without one being written out. */
extern bool pages_have_room(int count);
/* Empties PostgreSQL's list of pages that redo found to be zeroes where it needs contents. */
extern void pages_forget_invalid(void);
/* After an error: nothing may point into memory that is about to be freed. */
extern void pages_disown(void);
extern BlockNumber fsm_leaf_of_heap_block(BlockNumber heap_block_no);
extern BlockNumber vm_page_of_heap_block(BlockNumber heap_block_no);

/* apply.c: records onto one page */
extern void apply_init(void);
/* Leaves the page in `image`. Raises an ERROR (or PANIC) when the records do not apply. */
extern void apply_request(const char *body, uint32 body_len, char *image);
/* After an error: forgets the record that was being applied. Describes it in `text` first. */
extern void apply_describe_current(char *text, size_t size);
extern void apply_reset(void);

/* sandbox.c */
extern void sandbox_limits(void);
extern void sandbox_close_descriptors(void);
extern void sandbox_enter(void);

/* main.c: counts requests, so that the watchdog sees one that does not end */
extern volatile uint64 request_sequence;
extern volatile bool request_running;

#endif
