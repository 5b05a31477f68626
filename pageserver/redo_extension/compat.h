/*
 * What differs between PostgreSQL 14 and 18 for this extension, and nothing else.
 *
 * 15, 17 and 18 are built and tested against their own headers; the branches for 14 and 16 follow those versions'
 * sources.
 */
#ifndef PAGESERVER_REDO_COMPAT_H
#define PAGESERVER_REDO_COMPAT_H

#if PG_VERSION_NUM < 140000 || PG_VERSION_NUM >= 190000
#error "pageserver_redo builds against PostgreSQL 14 to 18"
#endif

#if BLCKSZ != 8192
#error "pageserver_redo needs pages of 8192 bytes"
#endif

/* storage/relfilenode.h up to 15, storage/relfilelocator.h from 16 */
#if PG_VERSION_NUM >= 160000
typedef RelFileLocator RelAddress;
#define REL_SPC(r) ((r).spcOid)
#define REL_DB(r) ((r).dbOid)
#define REL_NUMBER(r) ((r).relNumber)
#define BLOCK_REL(b) ((b)->rlocator)
#define DROP_BUFFERS DropRelationBuffers
#else
typedef RelFileNode RelAddress;
#define REL_SPC(r) ((r).spcNode)
#define REL_DB(r) ((r).dbNode)
#define REL_NUMBER(r) ((r).relNode)
#define BLOCK_REL(b) ((b)->rnode)
#define DROP_BUFFERS DropRelFileNodeBuffers
#endif

/* storage/procnumber.h from 17, storage/backendid.h before */
#if PG_VERSION_NUM >= 170000
#define NO_BACKEND INVALID_PROC_NUMBER
#else
#define NO_BACKEND InvalidBackendId
#endif

/* From 17 an SMgrRelation is kept by a pin, before that it stays until somebody closes it, and it has an owner. */
#if PG_VERSION_NUM >= 170000
#define KEEP_OPEN(smgr) smgrpin(smgr)
#define DISOWN(smgr) ((void) 0)
#else
#define KEEP_OPEN(smgr) ((void) 0)
#define DISOWN(smgr) \
    do { \
        if ((smgr)->smgr_owner != NULL) \
            smgrclearowner((smgr)->smgr_owner, (smgr)); \
    } while (0)
#endif

/* bufmgr.h: from 15 with the relation's persistence */
#if PG_VERSION_NUM >= 150000
#define READ_ZEROED(rel, fork, block_no) \
    ReadBufferWithoutRelcache((rel), (fork), (block_no), RBM_ZERO_AND_LOCK, NULL, true)
#else
#define READ_ZEROED(rel, fork, block_no) \
    ReadBufferWithoutRelcache((rel), (fork), (block_no), RBM_ZERO_AND_LOCK, NULL)
#endif

/* access/xlogreader.h: from 15 a record is decoded into a struct of its own */
#if PG_VERSION_NUM >= 150000
#define MAX_BLOCK_ID(reader) ((reader)->record->max_block_id)
#define BLOCK(reader, id) (&(reader)->record->blocks[id])
#else
#define MAX_BLOCK_ID(reader) ((reader)->max_block_id)
#define BLOCK(reader, id) (&(reader)->blocks[id])
#endif

/* access/rmgrlist.h, access/xlog_internal.h: from 15 extensions may have resource managers, and there is a lookup */
#if PG_VERSION_NUM >= 150000
#define RMGR(rmid) GetRmgr(rmid)
#define RMGR_IS_CUSTOM(rmid) ((rmid) >= RM_MIN_CUSTOM_ID)
#define RMGR_IS_LOADED(rmid) RmgrIdExists(rmid)
#else
#define RMGR(rmid) (RmgrTable[rmid])
#define RMGR_IS_CUSTOM(rmid) false
#define RMGR_IS_LOADED(rmid) true
#endif

#endif
