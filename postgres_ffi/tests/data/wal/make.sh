#!/bin/bash
# Records the WAL of a small, varied workload and what pg_walinspect says of it.
#
#   make.sh MAJOR SERVER_BIN CLIENT_BIN PORT DIRECTORY [ROWS] [BTREE_ROWS]
#
# Leaves DIRECTORY/wal.zst and, from version 15 on, DIRECTORY/records.tsv.zst. Run it as a user that is not root. The server listens on
# 127.0.0.1:PORT and is stopped at the end. ROWS and BTREE_ROWS were 260 and 900 for 15 and 17, 30 and 500 for 14, 16 and 18.
set -eu
major=$1 server=$2 client=$3 port=$4 dir=$5 rows=${6:-260} btree_rows=${7:-900}
here=$(cd "$(dirname "$0")" && pwd)
mkdir "$dir" "$dir/tablespace"

"$server/initdb" -D "$dir/data" --wal-segsize=1 -k -U postgres --no-sync -A trust --locale=C >/dev/null
cat >>"$dir/data/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = '$dir'
wal_level = logical
max_prepared_transactions = 10
track_commit_timestamp = on
max_wal_size = 1GB
wal_keep_size = 900MB
fsync = off
autovacuum = off
full_page_writes = off
checkpoint_timeout = 1h
CONF
"$server/pg_ctl" -D "$dir/data" -w -l "$dir/log" start >/dev/null
trap '"$server/pg_ctl" -D "$dir/data" -w -m immediate stop >/dev/null' EXIT
query() { "$client/psql" -h 127.0.0.1 -p "$port" -U postgres -X -q -At "$@"; }

query -c "create database w"
[ "$major" = 14 ] || query -d w -c "create extension pg_walinspect"
query -d w -c "create extension pg_surgery" -c "create extension bloom" \
  -c "create table mx(i int primary key, j int)" -c "insert into mx select i, 0 from generate_series(1, 20) i"
query -d w -c checkpoint -c "select pg_switch_wal()" >/dev/null
start=$(query -c "select pg_current_wal_lsn()")

query -d w -o /dev/null -v n="$rows" -v m="$btree_rows" -f "$here/workload.sql"
query -c "alter system set full_page_writes = on" -c "select pg_reload_conf()" >/dev/null
sleep 0.3
query -d w -o /dev/null -f "$here/images.sql"
for method in pglz lz4 zstd on; do # Not every build has all of them.
  PGOPTIONS="-c wal_compression=$method" query -d w -o /dev/null -f "$here/images.sql" || true
done
query -c "alter system set full_page_writes = off" -c "select pg_reload_conf()" >/dev/null
sleep 0.3
for i in 1 2; do # Two at a time make multixacts.
  query -o /dev/null -d w -c "begin; select * from mx for key share; select pg_sleep(0.5); update mx set j = j + 1 where i = $i; commit" &
done
wait %1 %2
query -d w -c "vacuum freeze mx"
query -c "create tablespace ts location '$dir/tablespace'"
query -c "drop tablespace ts"
[ "$major" = 14 ] && strategy="" || strategy="strategy file_copy"
query -c "create database x $strategy"
query -c "drop database x"
query -c "select pg_switch_wal()" >/dev/null
query -c checkpoint
end=$(query -c "select pg_current_wal_insert_lsn()")

if [ "$major" != 14 ]; then
  query -d w -c "copy (select start_lsn, end_lsn, prev_lsn, xid, resource_manager, record_type, record_length, main_data_length,
    fpi_length, description, block_ref from pg_get_wal_records_info('$start',
    (select max(end_lsn) from pg_get_wal_records_info('$start', '$end')))) to stdout" | tr -d '\r' >"$dir/records.tsv"
  zstd -19 -q "$dir/records.tsv"
fi

# Whole segments from the one of $start, the last one up to $end.
first=$((16#${start#*/} >> 20)) last=$((16#${end#*/} >> 20)) rest=$((16#${end#*/} & 16#FFFFF))
for ((no = first; no <= last; no++)); do
  segment="$dir/data/pg_wal/$(printf '00000001%08X%08X' $((no >> 12)) $((no & 16#FFF)))"
  if ((no < last)); then cat "$segment"; else head -c "$rest" "$segment"; fi
done | zstd -19 -q -o "$dir/wal.zst"
