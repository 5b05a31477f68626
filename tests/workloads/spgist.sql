-- SP-GiST: quad tree, k-d tree, radix tree; moved leaves, added nodes, split tuples, redirects and their removal.
create table sp (p point, t text);
create index sp_p on sp using spgist (p);
create index sp_k on sp using spgist (p kd_point_ops);
create index sp_t on sp using spgist (t);
insert into sp select point((i * 37) % 1000, (i * 91) % 1000), md5(i::text) from generate_series(1, 3000) i;
insert into sp select point(1, 1), repeat('abc', 30) || i from generate_series(1, 800) i;
delete from sp where p[0] < 500;
vacuum sp;
insert into sp select point(i, i), 'zz' || i from generate_series(1, 1000) i;
vacuum sp;
-- Long common prefixes that later values break.
create table prefix (t text);
create index prefix_t on prefix using spgist (t);
insert into prefix select repeat('a', 60) || md5(i::text) from generate_series(1, 800) i;
insert into prefix select repeat('a', 20) || 'b' || i from generate_series(1, 20) i;
insert into prefix select repeat('a', 5) || 'c' || i from generate_series(1, 20) i;
insert into prefix select 'zzz' || i from generate_series(1, 20) i;
delete from prefix where t like 'z%';
vacuum prefix;
insert into prefix select chr(65 + i % 50) || md5(i::text) from generate_series(1, 2000) i;
-- Root only.
create table root_only (p point);
create index root_only_p on root_only using spgist (p);
insert into root_only select point(i, i) from generate_series(1, 30) i;
delete from root_only where p[0] > 10;
vacuum root_only;
-- Ranges, boxes, networks; redirects go once nobody can be on them any more.
create table many (r int4range, b box, n inet);
create index many_r on many using spgist (r);
create index many_b on many using spgist (b);
create index many_n on many using spgist (n);
insert into many select int4range(i, i + i % 50), box(point(i, i), point(i + 5, i + 9)), ('10.' || i % 200 || '.' || i % 250 || '.1')::inet from generate_series(1, 4000) i;
delete from many where lower(r) % 2 = 0;
select count(txid_current()) from generate_series(1, 1);
vacuum many;
vacuum sp;
vacuum prefix;
