-- GIN: entry tree and posting trees, splits, pending lists, vacuum of leaves, deletion of posting tree pages.
create table g (id int, a int[], d tsvector);
create index g_a on g using gin (a) with (fastupdate = on);
create index g_d on g using gin (d) with (fastupdate = off);
insert into g select i, array[i % 10, i % 100, i], to_tsvector('simple', md5(i::text) || ' common w' || (i % 50)) from generate_series(1, 2500) i;
vacuum g;
update g set a = a || 7 where id % 4 = 0;
delete from g where id % 3 = 0;
vacuum g;
insert into g select i, array[1, 2, 3], to_tsvector('simple', 'common') from generate_series(1, 3000) i;
select gin_clean_pending_list('g_a');
delete from g where id > 1000;
vacuum g;
delete from g;
vacuum g;
insert into g select i, array[i % 5], to_tsvector('simple', 'zz' || i) from generate_series(1, 1000) i;
-- One key for half of the rows: a posting tree of several levels; its middle is deleted.
create table posting (id int);
insert into posting select i from generate_series(1, 60000) i;
create index posting_i on posting using gin ((array[id % 2])) with (fastupdate = off);
delete from posting where id between 8000 and 50000;
vacuum posting;
insert into posting select i from generate_series(60001, 66000) i;
delete from posting where id < 3000;
vacuum posting;
-- A posting tree that grows row by row from an entry tuple.
create table grows (id int, k int[]);
create index grows_k on grows using gin (k) with (fastupdate = off);
insert into grows select i, array[1] from generate_series(1, 6000) i;
insert into grows select i, array[i % 3] from generate_series(1, 6000) i;
-- jsonb, and a long pending list.
create table j (id int, doc jsonb);
create index j_doc on j using gin (doc jsonb_path_ops) with (fastupdate = on, gin_pending_list_limit = 64);
insert into j select i, jsonb_build_object('k', i % 17, 'v', md5(i::text)) from generate_series(1, 4000) i;
vacuum j;
