-- Much goes at once: whole ranges of pages of heap and indexes are emptied, vacuumed, and filled again.
create table big (id int primary key, k int, v text);
create index big_k on big (k);
create index big_h on big using hash (k);
insert into big select i, i % 1000, repeat('v', 60) from generate_series(1, 40000) i;
vacuum big;
delete from big where id between 5000 and 35000;
vacuum big;
vacuum (index_cleanup on, truncate off) big;
insert into big select i, i % 7, 'refill' from generate_series(100000, 120000) i;
delete from big where id > 4000;
vacuum big;
vacuum big;
delete from big;
vacuum big;
insert into big select i, i, 'last' from generate_series(1, 2000) i;
