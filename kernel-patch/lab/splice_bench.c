// SPDX-License-Identifier: GPL-2.0
/*
 * How long does it take to get the memory of another process into a sink: with
 * process_vmsplice() and splice(), and with process_vm_readv() and write()?
 *
 * Usage: splice_bench [MIB [RUNS]]
 *
 * Prints, for each sink, the median and the extremes of RUNS runs of each way,
 * taken in turn, and the processor time of the sender. A pipe, and a buffer,
 * of 1 MiB. The memory is private, anonymous and present, in pages of 4 KiB.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef __NR_process_vmsplice
#define __NR_process_vmsplice 600
#endif

#define CHUNK (1024 * 1024)
#define MAX_RUNS 25

enum sink { SINK_NULL, SINK_TMPFS, SINK_TCP, SINKS };

static const char *const sink_name[SINKS] = { "/dev/null", "file on tmpfs", "TCP, loopback" };

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double seconds(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

/* A process that receives and discards until the end. */
static int open_tcp(pid_t *receiver)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(addr);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), sock;

	if (listener < 0 || bind(listener, (void *)&addr, size) || listen(listener, 1) ||
	    getsockname(listener, (void *)&addr, &size))
		die("listening socket");
	*receiver = fork();
	if (*receiver < 0)
		die("fork");
	if (!*receiver) {
		int peer = accept(listener, NULL, NULL);

		/* MSG_TRUNC: the receiving side copies nothing in either way */
		while (recv(peer, NULL, CHUNK, MSG_TRUNC) > 0)
			;
		_exit(0);
	}
	sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sock < 0 || connect(sock, (void *)&addr, size))
		die("connect");
	close(listener);
	return sock;
}

static int open_sink(enum sink sink, pid_t *receiver)
{
	int fd;

	*receiver = 0;
	switch (sink) {
	case SINK_NULL:
		fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
		break;
	case SINK_TMPFS:
		fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		break;
	default:
		fd = open_tcp(receiver);
	}
	if (fd < 0)
		die(sink_name[sink]);
	return fd;
}

static void by_splice(pid_t pid, char *mem, size_t size, const int *pipe, int fd)
{
	while (size) {
		struct iovec iov = { mem, size < CHUNK ? size : CHUNK };
		ssize_t in_pipe = syscall(__NR_process_vmsplice, pid, pipe[1], &iov, 1, 0);

		if (in_pipe <= 0)
			die("process_vmsplice");
		mem += in_pipe;
		size -= in_pipe;
		while (in_pipe) {
			ssize_t n = splice(pipe[0], NULL, fd, NULL, in_pipe,
					   SPLICE_F_MOVE | (size ? SPLICE_F_MORE : 0));

			if (n <= 0)
				die("splice");
			in_pipe -= n;
		}
	}
}

static void by_copy(pid_t pid, char *mem, size_t size, char *buf, int fd)
{
	while (size) {
		struct iovec remote = { mem, size < CHUNK ? size : CHUNK };
		struct iovec local = { buf, CHUNK };
		ssize_t n = process_vm_readv(pid, &local, 1, &remote, 1, 0), done = 0;

		if (n <= 0)
			die("process_vm_readv");
		while (done < n) {
			ssize_t written = write(fd, buf + done, n - done);

			if (written <= 0)
				die("write");
			done += written;
		}
		mem += n;
		size -= n;
	}
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	size_t size = (argc > 1 ? strtoul(argv[1], NULL, 10) : 256) << 20;
	int runs = argc > 2 ? atoi(argv[2]) : 5, pipe[2], ready[2];
	char *mem, *buf, byte;
	pid_t target;

	if (runs < 1 || runs > MAX_RUNS || !size) {
		fprintf(stderr, "usage: splice_bench [MIB [RUNS]], at most %d runs\n", MAX_RUNS);
		return 2;
	}
	mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	buf = mmap(NULL, CHUNK, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (mem == MAP_FAILED || buf == MAP_FAILED)
		die("mmap");
	madvise(mem, size, MADV_NOHUGEPAGE);
	if (pipe2(pipe, O_CLOEXEC) || pipe2(ready, O_CLOEXEC))
		die("pipe2");
	if (fcntl(pipe[1], F_SETPIPE_SZ, CHUNK) != CHUNK)
		die("F_SETPIPE_SZ");

	target = fork();
	if (target < 0)
		die("fork");
	if (!target) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (size_t i = 0; i < size; i += sizeof(size_t))
			*(size_t *)(mem + i) = i * 0x9e3779b97f4a7c15UL;
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	if (read(ready[0], &byte, 1) != 1)
		die("target");

	printf("%zu MiB, %d runs each; GB/s: median (lowest to highest); CPU: median of the sender\n",
	       size >> 20, runs);
	for (enum sink sink = 0; sink < SINKS; sink++) {
		double rate[2][MAX_RUNS], cpu[2][MAX_RUNS];

		for (int run = 0; run < runs; run++) {
			for (int way = 0; way < 2; way++) {
				double wall, used;
				pid_t receiver;
				int fd = open_sink(sink, &receiver);

				wall = seconds(CLOCK_MONOTONIC);
				used = seconds(CLOCK_PROCESS_CPUTIME_ID);
				if (way)
					by_copy(target, mem, size, buf, fd);
				else
					by_splice(target, mem, size, pipe, fd);
				/* to a socket: until the other end has it all */
				if (receiver) {
					shutdown(fd, SHUT_WR);
					waitpid(receiver, NULL, 0);
				}
				rate[way][run] = size / (seconds(CLOCK_MONOTONIC) - wall) / 1e9;
				cpu[way][run] = seconds(CLOCK_PROCESS_CPUTIME_ID) - used;
				close(fd);
			}
		}
		for (int way = 0; way < 2; way++) {
			qsort(rate[way], runs, sizeof(double), compare);
			qsort(cpu[way], runs, sizeof(double), compare);
			printf("%-14s %-26s %6.2f (%.2f to %.2f)  CPU %.3f s\n", sink_name[sink],
			       way ? "process_vm_readv + write" : "process_vmsplice + splice",
			       rate[way][runs / 2], rate[way][0], rate[way][runs - 1],
			       cpu[way][runs / 2]);
		}
		printf("%-14s %.1f times\n", sink_name[sink],
		       rate[0][runs / 2] / rate[1][runs / 2]);
		fflush(stdout);
	}
	kill(target, SIGKILL);
	return 0;
}
