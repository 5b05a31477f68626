/*
 * The pages of one request, in PostgreSQL's own buffer pool.
 *
 * - The relations of a record are renamed to a few fake ones whose files were made, unlinked and closed at start-up:
 *   storage manager and buffer pool believe in them, the disk knows nothing of them.
 * - A fake relation has as many blocks as a relation can have, so redo never extends one.
 * - Every page that redo may touch is in the pool before redo runs, so nothing is ever read. Pages are dropped before
 *   the pool is full, so nothing is ever written.
 */
#include "redo.h"

#include <unistd.h>

#include "access/xlogreader.h"
#include "access/xlogutils.h"
#include "catalog/pg_tablespace_d.h"
#include "storage/buf_internals.h"
#include "storage/bufmgr.h"
#include "storage/fsm_internals.h"
#include "storage/smgr.h"

#include "compat.h"

/* In pg_global, whose folder exists: a file name is "global/<number>", no database folder is made. */
#define FAKE_REL_FIRST 4000000000u
/* smgr takes this as the number of blocks; the highest legal block number is one less than InvalidBlockNumber. */
#define BLOCKS_ALL (InvalidBlockNumber - 1)
/* Main, free space map, visibility map. Init forks are renamed to main; DropRel*Buffers has room for three. */
#define FAKE_FORKS 3
/* Buffers that stay free: pins of redo itself, and the target put back. */
#define BUFFERS_SPARE 8
/* freespace.c: FSM_TREE_DEPTH for pages of 8 KiB */
#define FSM_LEVELS 3
/* visibilitymap.c: HEAPBLOCKS_PER_PAGE: 4 blocks per byte of the page's contents */
#define HEAP_BLOCKS_PER_VM_PAGE ((BLCKSZ - MAXALIGN(SizeOfPageHeaderData)) * 4)

StaticAssertDecl(SlotsPerFSMPage >= 1626, "the free space map has three levels");

static RelAddress fake_rel[FAKE_RELS];
static SMgrRelation fake_smgr[FAKE_RELS];
static bool rel_used[FAKE_RELS];
static int pages_used;
/* The map page that was poisoned last, per relation and map, since pages were dropped. */
static BlockNumber poisoned_map[FAKE_RELS][2];

void
pages_init(void)
{
    static const char *const suffix[FAKE_FORKS] = {"", "_fsm", "_vm"};

    for (int i = 0; i < FAKE_RELS; i++)
    {
        REL_SPC(fake_rel[i]) = GLOBALTABLESPACE_OID;
        REL_DB(fake_rel[i]) = 0;
        REL_NUMBER(fake_rel[i]) = FAKE_REL_FIRST + i;
        fake_smgr[i] = smgropen(fake_rel[i], NO_BACKEND);
        KEEP_OPEN(fake_smgr[i]);
        for (int fork = 0; fork < FAKE_FORKS; fork++)
        {
            char path[64];

            /* Now it counts as open, and redo's own smgrcreate() does nothing. */
            smgrcreate(fake_smgr[i], fork, true);
            fake_smgr[i]->smgr_cached_nblocks[fork] = BLOCKS_ALL;
            snprintf(path, sizeof(path), "global/%u%s", FAKE_REL_FIRST + i, suffix[fork]);
            unlink(path);
        }
        fake_smgr[i]->smgr_cached_nblocks[INIT_FORKNUM] = BLOCKS_ALL;
        poisoned_map[i][0] = poisoned_map[i][1] = InvalidBlockNumber;
    }
}

/* Pins and locks the block's buffer, zeroed if it was not in the pool. */
static Buffer
take(int rel, ForkNumber fork, BlockNumber block_no)
{
    if (block_no >= BLOCKS_ALL)
        elog(ERROR, "block number %u is not one", block_no);
    rel_used[rel] = true;
    pages_used++;
    return READ_ZEROED(fake_rel[rel], fork, block_no);
}

void
page_put(int rel, ForkNumber fork, BlockNumber block_no, const char *image)
{
    Buffer buffer = take(rel, fork, block_no);

    if (image != NULL)
        memcpy(BufferGetPage(buffer), image, BLCKSZ);
    else
        memset(BufferGetPage(buffer), 0, BLCKSZ);
    MarkBufferDirty(buffer);
    UnlockReleaseBuffer(buffer);
}

void
page_get(int rel, ForkNumber fork, BlockNumber block_no, char *image)
{
    Buffer buffer = take(rel, fork, block_no);

    memcpy(image, BufferGetPage(buffer), BLCKSZ);
    UnlockReleaseBuffer(buffer);
}

/*
 * An LSN above every record's: redo says BLK_DONE and leaves the page alone, a case that every resource manager
 * handles, because it is what recovery after a crash meets.
 */
void
page_poison(int rel, ForkNumber fork, BlockNumber block_no)
{
    Buffer buffer = take(rel, fork, block_no);
    PageHeader page = (PageHeader) BufferGetPage(buffer);

    PageXLogRecPtrSet(page->pd_lsn, PG_UINT64_MAX);
    page->pd_lower = SizeOfPageHeaderData;
    page->pd_upper = BLCKSZ;
    page->pd_special = BLCKSZ;
    page->pd_pagesize_version = BLCKSZ | PG_PAGE_LAYOUT_VERSION;
    UnlockReleaseBuffer(buffer);
}

void
page_poison_map(int rel, ForkNumber fork, BlockNumber block_no)
{
    BlockNumber *last = &poisoned_map[rel][fork == FSM_FORKNUM ? 0 : 1];

    if (*last == block_no)
        return;
    page_poison(rel, fork, block_no);
    *last = block_no;
}

void
pages_drop_all(void)
{
    ForkNumber forks[FAKE_FORKS] = {MAIN_FORKNUM, FSM_FORKNUM, VISIBILITYMAP_FORKNUM};
    BlockNumber from[FAKE_FORKS] = {0, 0, 0};

    for (int i = 0; i < FAKE_RELS; i++)
    {
        if (!rel_used[i])
            continue;
        DROP_BUFFERS(fake_smgr[i], forks, FAKE_FORKS, from);
        rel_used[i] = false;
        poisoned_map[i][0] = poisoned_map[i][1] = InvalidBlockNumber;
    }
    pages_used = 0;
}

bool
pages_have_room(int count)
{
    return pages_used + count <= NBuffers - BUFFERS_SPARE;
}

void
pages_forget_invalid(void)
{
    if (!XLogHaveInvalidPages())
        return;
    for (int i = 0; i < FAKE_RELS; i++)
        for (int fork = 0; fork <= MAX_FORKNUM; fork++)
            XLogDropRelation(fake_rel[i], fork);
}

void
pages_disown(void)
{
    for (int i = 0; i < FAKE_RELS; i++)
        DISOWN(fake_smgr[i]);
}

/* freespace.c, fsm_logical_to_physical() for a leaf: one page per level above each leaf's first, then the leaf. */
BlockNumber
fsm_leaf_of_heap_block(BlockNumber heap_block_no)
{
    BlockNumber above = heap_block_no / SlotsPerFSMPage;
    BlockNumber pages = 0;

    for (int level = 0; level < FSM_LEVELS; level++)
    {
        pages += above + 1;
        above /= SlotsPerFSMPage;
    }
    return pages - 1;
}

BlockNumber
vm_page_of_heap_block(BlockNumber heap_block_no)
{
    return heap_block_no / HEAP_BLOCKS_PER_VM_PAGE;
}

void
page_rename(DecodedBkpBlock *block, int rel)
{
    BLOCK_REL(block) = fake_rel[rel];
}
