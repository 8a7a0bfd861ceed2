# Runs in any shell with the usual tools, for it may find itself on another root file system.
# Runs scripts that arrive at ttyS1. A request is a line "NONCE SECONDS NBYTES" and so many bytes, an
# answer is a line "NONCE STATUS LATE NBYTES" and so many bytes. A script that takes longer is killed (LATE is 1).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
cd /
exec 3<>/dev/ttyS1
stty raw -echo <&3
at=/dev/shm/control
mkdir -p $at
cat >$at/watch <<'END'
sleep "$2"
cd /dev/shm/control
: >late
{
    echo "control: the script still runs after $2 s; its output ends:"
    tail -c 2000 output
} >/dev/console
dmesg -n 8
echo w >/proc/sysrq-trigger
kill -KILL -"$1"
END
printf 'PYVIRTFS-READY\n' >&3
while read -r nonce seconds nbytes <&3; do
    dd bs="$nbytes" count=1 iflag=fullblock of=$at/script <&3 2>/dev/null
    rm -f $at/output $at/late
    setsid sh $at/script </dev/null >$at/output 2>&1 3>&- &
    script=$!
    setsid sh $at/watch $script "$seconds" </dev/null 3>&- &
    watch=$!
    wait $script
    status=$?
    kill -KILL -$watch 2>/dev/null || kill -KILL $watch 2>/dev/null
    wait $watch 2>/dev/null
    late=0
    [ -e $at/late ] && late=1
    nbytes=$(wc -c <$at/output)
    printf '%s %d %d %d\n' "$nonce" $status $late $nbytes >&3
    [ "$nbytes" = 0 ] || head -c "$nbytes" $at/output >&3
done
