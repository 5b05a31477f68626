-- Hash: buckets split, overflow pages come and go, squeezed pages, dead entries removed on insert.
create table h (k int, v text);
create index h_k on h using hash (k);
create index h_v on h using hash (v);
insert into h select i, md5((i % 200)::text) from generate_series(1, 6000) i;
delete from h where k % 3 <> 0;
vacuum h;
insert into h select i, md5((i % 20)::text) from generate_series(1, 3000) i;
delete from h;
vacuum h;
insert into h select i, 'same' from generate_series(1, 1500) i;
delete from h where k > 200;
vacuum h;
insert into h select i, md5(i::text) from generate_series(1, 1500) i;
-- One value: a chain of overflow pages, thinned out so that tuples move forward.
create table chain (k int, v text);
create index chain_v on chain using hash (v);
insert into chain select i, 'same' from generate_series(1, 4000) i;
delete from chain where k % 3 = 0;
vacuum chain;
delete from chain where k % 2 = 0;
vacuum chain;
delete from chain where k % 5 <> 1;
vacuum chain;
-- Dead entries that a reader marked are removed by the insert that needs room.
create table killed (k int) with (autovacuum_enabled = off);
create index killed_k on killed using hash (k);
insert into killed select i % 4 from generate_series(1, 2400) i;
delete from killed where k = 1;
set enable_seqscan = off;
set enable_bitmapscan = off;
select count(*) from killed where k = 1;
select count(*) from killed where k = 1;
insert into killed select 1 from generate_series(1, 3000) i;
reset enable_seqscan;
reset enable_bitmapscan;
-- Built over data that is there; many buckets at once.
create table built as select i k from generate_series(1, 20000) i;
create index built_k on built using hash (k);
insert into built select i from generate_series(20001, 30000) i;
