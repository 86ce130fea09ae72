# Each line is run twice, P being `parallel -j2` and `ipclient map` on two engines; what it prints must be the same.
# The directory has: nums (1 to 3), letters (a to c), table.csv (x,y and two rows), words ("a b", "c d"), d/a.tar.gz, d/b.txt
P -k echo ::: a b c
P -k echo {} {} ::: a b
P -k echo ::: a b ::: 1 2
P -k echo {2}-{1} ::: a b ::: 1 2
P -k echo {-1} {1} ::: a b ::: 1 2
P -k echo ::: a b c :::+ 1 2 3
P -k echo {1}{2} ::: a b c :::+ 1 2
P -k echo ::: a b :::+ 1 2 ::: x y
P -k --link echo {1}{2} ::: a b c ::: 1 2
P -k --xapply echo ::: a b ::: 1 2
P -k echo :::: nums
P -k echo :::: nums letters
P -k echo :::: nums ::::+ letters
P -k echo :::: nums ::: x y
P -k -a nums echo
P -k -a nums -a letters echo {2} {1}
P -k -a nums echo ::: x y
cat nums | P -k echo
cat nums | P -k echo {} x
cat nums | P -k echo :::: - letters
cat letters | P -k -a - echo {2} {1} :::: nums
P -k echo {.} {/} {//} {/.} ::: d/a.tar.gz d/b.txt plain /
P -k echo {1/} {2//} {1/.} {2.} ::: d/a.x ::: e/f.g
P -k --plus echo {..} {+.} {+..} {/..} {+/} {...} ::: d/a.tar.gz e/b
P -k --plus echo {##} {#} ::: a b c
P -k echo {#} ::: x y z
P -k -I ,, echo ,, {} ::: a b
P -k -C , echo {2}={1} ::: a,b c,d
P -k --colsep , echo {} ::: a,b c,d,e
P -k --colsep ' +' -a words echo {2} {1}
printf 'a\tb\nc\td\n' | P -k --colsep '\t' echo {2}
P -k --colsep , --header : -a table.csv echo {y} {x} {1}
P -k --header : echo a={a} b={b} ::: a A B ::: b C D
P -k --trim lr 'echo x{}x' ::: ' a ' ' b'
P -k --trim l 'echo x{}x' ::: ' a ' ' b'
printf 'a\0b c\0' | P -k -0 echo x{}
printf 'a;b;c' | P -k -d ';' echo x{}
printf 'a\nb\nEND\nc\n' | P -k -E END echo
P -k -E b echo ::: a b c
printf 'a\n\nb\n' | P -k -r echo x{}
P -k -N2 echo {2}-{1} ::: a b c d
P -k -N2 echo ::: a b c
P -k -n3 echo ::: a b c d
P -k -N0 echo hi ::: 1 2 3
P -k -N2 echo ::: a b ::: c d
P -k -L2 echo x :::: nums
P -k -X echo pre{}post ::: 1 2 3 4 5
P -k -m echo pre{}post ::: 1 2 3 4 5
P -k -X echo ::: 1 2 3 4 5
P -k ::: 'echo a' 'echo b | tr b c'
printf 'echo 1\necho 2; echo 3\n' | P -k
P -k echo ::: 'a  b' "it's" '$HOME' '*' 'a;b' '' '\' '"' '~' '#' '`id`' 'é'
P -k 'echo "$(echo {})"' ::: 'a b' '$x'
P -k -q echo 'a  b' {} ::: 'c  d' "it's"
P -k --dry-run echo {} {.} ::: 'a b.c' d.e
P -k --dry-run gzip ::: 'x y' z
P -k --tag echo hi ::: a b ::: 1 2
P -k --tag 'printf "1\n\n2"' ::: a b
P -k --tagstring '{1}:{#}' echo hi ::: a b
P -k -v echo ::: a b
P -k -t echo ::: a b 2> trace; cat trace
P --results out echo {} ::: a b ::: 'x y/z'; find out -type f | sort | tr '\n' '\0' | xargs -0 tail -n +1
P --header : --results out echo {x} ::: x 1 2; find out -type f | sort | xargs tail -n +1
P --results 'out/{1}-{#}' 'echo {}; echo e >&2' ::: a b 2> /dev/null; find out -type f | sort | xargs tail -n +1
seq 10 | P -k --pipe -N3 'echo n; cat'
seq 1000 | P -k --pipe --block 1k 'wc -c'
seq 20 | P -k --pipe --block 10 'echo {#}; cat'
seq 10 | P -k --pipe -L4 -N1 'echo n; cat'
printf 'a;b;c' | P -k --pipe -N1 --recend ';' 'cat; echo'
printf 'a--b--c' | P -k --pipe -N1 --recend -- 'cat; echo'
printf '>a\n1\n>b\n2\n' | P -k --pipe -N1 --recstart '>' 'echo n; cat'
P -k --shuf echo {} ::: 1 2 3 4 5 | sort
P -k --delay 0.05 echo ::: a b
P -k --env X 'echo $X {}' ::: a b
P -k --env fun 'fun {}' ::: a b
P -k --joblog log 'echo {}; exit {}' ::: 0 1 2; cut -f1,7,8,9 log | sort
P -k --joblog log 'test {} = 0' ::: 0 1; P -k --joblog log --resume 'echo {}' ::: 0 1 2; cut -f1,7 log | sort
P -k --joblog log 'test {} = 0' ::: 0 1; P -k --joblog log --resume-failed 'echo {}' ::: 0 1 2; cut -f1,7 log | sort
P -k --halt now,fail=1 'exit {}' ::: 0 7; echo "exit status $?"
P -k --halt soon,fail=1 'exit {}' ::: 0 0 3; echo "exit status $?"
P -j1 -k --halt soon,success=1 'echo {}; exit {}' ::: 1 0 2; echo "exit status $?"
P -j1 -k --halt soon,fail=1 'echo {}; test {} = 0' ::: 0 1 2 3; echo "exit status $?"
P -k 'echo $PARALLEL_SEQ {}' ::: a b
P -k echo {%} ::: a b | tr 12 xx
P -k 'cat {} | wc -l' ::: nums letters
P -k -- wc -l ::: nums letters
P -k "awk '{print \$1}' {}" ::: nums
P -k echo '{ } {a} ${HOME:+h}' ::: x
P -k 'printf "\\377%s\\001"' ::: a b | od -An -tx1
