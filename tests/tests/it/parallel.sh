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
P -k 'echo {1}-{2}-' ::: a b :::
P -k echo ::: ::: a b
P -k 'echo {1}-{2}-' ::: a b :::+
P -k 'echo {1}-{2}-' :::: /dev/null ::: a b
P -k echo {-2.} {-1/} ::: a.b b ::: c/d d
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
P -k --delay 0.05s echo ::: a b
P -k --delay 0.001m echo ::: a b
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
P -k --xargs -n2 echo x{}y ::: 1 2 3
P -k --pipe -L3 'echo n; cat' < nums
seq 10 | P -k --pipe -L3 'echo n; cat'
printf '1\n2\n3' | P -k --pipe -L1 'echo n; cat'
printf '1\n2\n3\n4' | P -k --pipe --block 4 'echo n; cat'
seq 20 | P -k --pipe -L3 --block 14 'echo n; cat'
printf '\377\376a\n\377b\n' | P -k --pipe -N1 'cat | od -An -tx1'
printf 'a\nb' | P -k --pipe cat
seq 10 | P -k --pipe -N2 'echo n; cat'
seq 5 | P -k --pipe -n1 'cat'
seq 3 | P -k --spreadstdin -N1 cat
P -k -v --tag echo {} ::: a b
P -k -v --tagstring 'x{}' echo {} ::: a b
P -k --tag --line-buffer 'echo {}; echo x' ::: a b
P -k --line-buffer 'printf "a\nb"; printf "\377\nc\n"; echo {}' ::: 1 2 | od -c
P -j1 -v --line-buffer 'echo {}' ::: a b 2>&1
P -j1 -u 'echo {}' ::: a b
P -j1 --halt soon,done=1 'exit {}' ::: 3 0 4; echo $?
P -j1 --halt now,fail=50% 'exit {}' ::: 3 0 4 5; echo $?
P -j1 --halt soon,done=2 'exit {}' ::: 3 0 4; echo $?
P -j1 --halt now,success=2 'echo {}; exit {}' ::: 0 3 0 4; echo $?
P -j1 --halt now,fail=2 'echo {}; exit {}' ::: 0 3 0 4 5; echo $?
P -j1 --halt soon,fail=30% 'echo {}; exit {}' ::: 0 3 0 4 5; echo $?
printf 'a\n\nb' | P -k -d '\n\n' echo
printf 'a12b12c' | P -k -d 12 echo
P -k -d ab echo :::: nums
P -k echo {1}-{2}-{3} ::: a b :::+ c d ::: e f
P -k 'echo {1} {2}; echo {2} >&2' ::: a ::: b 2>&1
P -k echo a{}b{}c ::: X
P -k 'echo {}' ::: '{}' '{.}' '{1}' '{#}'
P -k -- echo -n x ::: a
P -k "echo it\\'s {}" ::: a
P -k 'VAR={}; echo $VAR' ::: 'a b'
P -k 'cd {} && pwd | grep -c .' ::: d
P -k 'for i in 1 2; do echo {} $i; done' ::: a b
P -k 'echo {} | sed s/a/b/' ::: aaa
P -k "perl -e 'print \"{}\\n\"'" ::: a
P -k 'awk "BEGIN{print {}*2}"' ::: 3 4
P -k --colsep ' ' 'echo {1}; echo {2}' :::: words
P -k --colsep ',' --header : 'echo {x} {y}' :::: table.csv
P -k --header : echo {a} ::: a 1 2
P -k --header : 'echo {f1} {f2}' ::: f1 A B ::: f2 C D
P -k -N2 --colsep ',' echo {1} {2} {3} {4} ::: a,b c,d
P -k --trim lr --colsep , 'echo {1}x{2}' ::: ' a , b '
printf ' a\nb \n' | P -k --trim lr echo x{}x
printf 'a b\n' | P -k echo {1} {2}
printf 'é\n日本\n' | P -k echo {.} {}
printf 'a\r\nb\r\n' | P -k echo {} | od -c
P -k --link echo {1} {2} ::: a b c ::: 1
P -k 'echo {}' :::: nums nums
P -k echo {2} {1} :::: nums letters
P -k echo {#} {%} ::: a | sed 's/[0-9]$/n/'
P -j1 --halt now,done=2 'exit {}' ::: 3 0 4; echo "exit status $?"
P -k --colsep '[,;]' echo {1}-{2} ::: 'a,b' 'c;d'
P -k -0 -a nums echo x{}x
P -k --max-args 2 echo ::: 1 2 3 4 5
P -k --xargs echo ::: 1 2 3 4 5
P -k -N3 echo {1} {3} ::: 1 2 3 4 5 6 7
find d -type f -print0 | sort -z | P -0 -k echo {/}
P -k echo {} :::: <(printf 'a\nb\n')
P -k echo {.} {/.} ::: a.b.c/x .hidden d/.h x.
P -k --keep-order -k echo ::: a
P --retries 2 -k 'echo {}; exit 1' ::: a; echo "exit status $?"
P -k -X -n3 echo ::: 1 2 3 4 5 6
P -k -m -n2 echo ::: 1 2 3 4 5 6 7
P -k -X -n10 echo ::: 1 2 3 4 5
P -j0 -k echo ::: a b
P -j50% -k echo ::: a b
P -j-1 -k echo ::: a
P -P2 --group --will-cite -k echo ::: a
P --verbose -k echo ::: a 2>&1 | sort
P -k echo ::: -n -e --help
P -k echo ::: '!' '!!' 'a!b' '[a]' '<>' '|' '&&' '()' '{a,b}' '=' ':' '@' '%' ',' '^' '?' '~root'
