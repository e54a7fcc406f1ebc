# SPDX-License-Identifier: GPL-2.0-only
#
# Read the output of one virtual machine that runs job upstream:
#
#	awk -v vm=NAME -v res=FILE -f upstream.awk
#
# One line a program goes to standard output, and to FILE (appended, separated
# by tabs): program, result, seconds, reason.  Results: pass, skip, fail, time
# (ran out of time), report (the kernel complained).  How the machine ended goes
# to FILE.end: vm.sh's status, its text, the program that had begun and not
# ended, how many programs had reports, and what is to be said about the module.

function finish(result, why) {
	gsub(/\t/, " ", why)
	why = substr(why, 1, 200)
	printf "[%s] %-6s %4s s  %s%s\n", vm, result, secs, prog, \
		(result == "pass" ? "" : "  # " why)
	fflush()
	printf "%s\t%s\t%s\t%s\n", prog, result, secs, why >>res
	fflush(res)
	prog = ""
}

BEGIN { status = 4; text = "the machine stopped and was ended" }
{ sub(/\r$/, "") }

/^# kpt-begin: / {
	prog = substr($0, 14)
	report = skip = assertion = notok = last = ""
	next_is_where = 0
	next
}
/^# kpt-report: / { if (report == "") report = substr($0, 15); next }
/^# kpt-module: / { module = substr($0, 15); print "[" vm "] " module; next }
/^# kpt-cycles: / { module = module $3 " cycles of attaching and detaching"; next }
/^# kpt-end: / {
	rc = $3; sub(/rc=/, "", rc)
	secs = $4; sub(/secs=/, "", secs)
	if (report != "") {
		reports++
		finish("report", report)
	} else if ($5 == "how=timeout")
		finish("time", "no end after " secs " s" (last == "" ? "" : "; last line: " last))
	else if (rc == 0)
		finish("pass", "")
	else if (rc == 4)
		finish("skip", skip != "" ? skip : last)
	else {
		why = assertion != "" ? assertion : notok != "" ? notok : last
		finish("fail", (rc > 128 && rc < 160 ? "signal " rc - 128 : "exit " rc) ": " why)
	}
	next
}
/^# kpt-vm: .* end=/ {
	text = $0
	match(text, / end=[0-9]+ /)
	status = substr(text, RSTART + 5, RLENGTH - 6)
	text = substr(text, RSTART + RLENGTH)
	next
}
/^# kernel: / || /^# qemu: / { if (said++ < 40) print "[" vm "]     " $0; next }
/^\| / {
	line = substr($0, 3)
	sub(/^[ \t]+/, "", line)
	if (line == "")
		next
	if (next_is_where) {
		if (assertion == "")
			assertion = line
		next_is_where = 0
	}
	if (line ~ /Test Assertion Failure/)
		next_is_where = 1
	if (match(line, /SKIP[ :-]*/) && skip == "") {
		skip = substr(line, RSTART + RLENGTH)
		sub(/^[^A-Za-z0-9_]*/, "", skip)
	}
	if (line ~ /^not ok / && notok == "")
		notok = line
	last = line
}
END {
	print "[" vm "] machine: " text (module == "" ? "" : "; " module)
	printf "%s\n%s\n%s\n%d\n%s\n", status, text, prog, reports, module >(res ".end")
}
